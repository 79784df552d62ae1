//! PostgreSQL as Debian has it, started for one run, with a copy of the catalog's tables and their indexes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use fluvial_model::catalog::{ColumnType, TABLES};
use fluvial_tests::bed::free_port;
use fluvial_tests::federation::Process;
use fluvial_tests::wait::wait_for;
use nix::unistd::{Uid, User, chown};
use tempfile::TempDir;

/// It does not run as root.
const USER: &str = "postgres";

/// A server that runs. Ended, and its data removed, on drop.
pub(crate) struct Postgres {
    bin: PathBuf,
    port: u16,
    _process: Process,
    pub(crate) folder: TempDir,
}

/// Where Debian's packages put the newest one.
fn bin() -> Result<PathBuf> {
    let found = fs::read_dir("/usr/lib/postgresql").map(|all| all.flatten().map(|entry| entry.path().join("bin")));
    let found = found.map(|all| all.filter(|bin| bin.join("pgbench").is_file()).max()).unwrap_or_default();
    found.context("PostgreSQL is missing: run `tests/bed/install benches`")
}

/// A command as the user that it may run as.
fn command(program: &Path) -> Command {
    if !Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program);
    command
}

fn done(what: &str, command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {what}"))?;
    if !output.status.success() {
        bail!("{what} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Postgres {
    /// Starts one with its own defaults.
    pub(crate) fn start() -> Result<Self> {
        let bin = bin()?;
        let folder = tempfile::Builder::new().prefix("bench-postgres-").tempdir()?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let data = folder.path().join("data");
        fs::create_dir(&data)?;
        if Uid::effective().is_root() {
            let user = User::from_name(USER)?.with_context(|| format!("there is no user {USER}"))?;
            chown(&data, Some(user.uid), Some(user.gid))?;
        }
        done(
            "initdb",
            command(&bin.join("initdb")).args(["--auth", "trust", "--username", USER, "--pgdata"]).arg(&data),
        )?;
        let port = free_port();
        let mut server = command(&bin.join("postgres"));
        server.args([
            "-p",
            &port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-D",
        ]);
        let process = Process::start(server.arg(&data), &folder.path().join("log"));
        let postgres = Self { bin, port, _process: process, folder };
        wait_for(std::time::Duration::from_secs(60), "PostgreSQL", || {
            postgres.sql("select 1").map_err(|e| e.to_string())
        });
        Ok(postgres)
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER]).stdin(Stdio::null());
        command
    }

    /// What a statement answers.
    pub(crate) fn sql(&self, sql: &str) -> Result<String> {
        done("psql", self.client("psql").args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// Makes a table of the catalog, without its indexes.
    pub(crate) fn create(&self, table: &str) -> Result<()> {
        let table = TABLES.iter().find(|known| known.name == table).context("a table of the catalog")?;
        let columns = table.columns.iter().map(|column| {
            let kind = match column.kind {
                ColumnType::Text => "text",
                ColumnType::Integer => "bigint",
                ColumnType::Real => "double precision",
            };
            format!("{} {kind}", column.name)
        });
        let columns: Vec<String> = columns.collect();
        self.sql(&format!("create table {} ({})", table.name, columns.join(", "))).map(drop)
    }

    /// Loads lines of CSV with a head.
    pub(crate) fn load(&self, table: &str, csv: &Path) -> Result<()> {
        self.sql(&format!("\\copy {table} from '{}' with (format csv, header true)", csv.display())).map(drop)
    }

    /// The indexes that the catalog has, and the statistics that the planner needs.
    pub(crate) fn index(&self, table: &str) -> Result<()> {
        let known = TABLES.iter().find(|known| known.name == table).context("a table of the catalog")?;
        for columns in known.indexes {
            self.sql(&format!("create index on {table} ({})", columns.join(", ")))?;
        }
        self.sql(&format!("vacuum analyze {table}")).map(drop)
    }

    /// Version, as it says.
    pub(crate) fn version(&self) -> Result<String> {
        Ok(self.sql("show server_version")?.trim().to_owned())
    }

    /// Runs a script of `pgbench` so many times, by one client; how long each took, in milliseconds.
    pub(crate) fn bench(&self, script: &str, times: usize) -> Result<Vec<f64>> {
        let work = tempfile::tempdir_in(self.folder.path())?;
        let file = work.path().join("script");
        fs::write(&file, script)?;
        let mut pgbench = self.client("pgbench");
        pgbench
            .args(["-n", "-c", "1", "-t", &times.to_string(), "-l", "-f"])
            .arg(&file)
            .arg(USER)
            .current_dir(work.path());
        done("pgbench", &mut pgbench)?;
        let mut taken = Vec::new();
        for entry in
            fs::read_dir(work.path())?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("pgbench_log"))
        {
            // client, transaction, microseconds, …
            let text = fs::read_to_string(entry.path())?;
            taken.extend(
                text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()).map(|us| us / 1000.0),
            );
        }
        ensure!(taken.len() == times, "pgbench has logged {} of {times} transactions", taken.len());
        Ok(taken)
    }
}
