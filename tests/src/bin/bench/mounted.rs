//! The file systems that are compared: each shows a bucket, or what was copied from it, as a directory.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fluvial_tests::bed::free_port;
use fluvial_tests::minio::Minio;
use fluvial_tests::steps::s3_options;

use crate::measured::high_water_kib;
use crate::{programs, rclone};

/// How long a mount may take to come and to go.
const LIMIT: Duration = Duration::from_secs(60);

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fluvial,
    Rclone,
    S3fs,
    Juicefs,
}

impl Kind {
    pub(crate) const PEERS: [Self; 3] = [Self::Rclone, Self::S3fs, Self::Juicefs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fluvial => "fluvial",
            Self::Rclone => "rclone mount",
            Self::S3fs => "s3fs",
            Self::Juicefs => "juicefs",
        }
    }
}

/// `fluvial up` with one member, ended when dropped.
pub(crate) struct Server {
    program: PathBuf,
    kubeconfig: PathBuf,
    child: Child,
}

impl Server {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let program = programs::fluvial()?;
        let data = folder.join("fluvial");
        let log = File::create(folder.join("fluvial.log"))?;
        let mut child = Command::new(&program)
            .args(["up", "--hubs", "1", "--members", "a", "--listen", &format!("127.0.0.1:{}", free_port())])
            .arg("--data-dir")
            .arg(&data)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting fluvial")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output is a pipe")?).read_line(&mut line)?;
        ensure!(line.contains("kubeconfig"), "`fluvial up` said {line:?}");
        Ok(Self { program, kubeconfig: data.join("kubeconfig"), child })
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        succeed(command)
    }

    /// The highest resident memory of the processes that serve its mounts, in MiB.
    pub(crate) fn mount_peak_mib(&self) -> Result<f64> {
        let mut peak = 0.0_f64;
        for entry in fs::read_dir("/proc")?.flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            let data = self.kubeconfig.parent().unwrap_or(&self.kubeconfig).display().to_string();
            if command.contains("serve-mount") && command.contains(&data) {
                let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
                peak = peak.max(high_water_kib(&status).unwrap_or_default() as f64 / 1024.0);
            }
        }
        ensure!(peak > 0.0, "no mount process was found");
        Ok(peak)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // In order, so that no mount is left; what fails here was reported by the run itself.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// A mount that is ended when dropped.
pub(crate) struct Mounted {
    pub(crate) directory: PathBuf,
    child: Option<Child>,
}

/// Everything that the kinds need.
pub(crate) struct World<'a> {
    pub(crate) minio: &'a Minio,
    pub(crate) server: &'a Server,
    pub(crate) folder: &'a Path,
    pub(crate) bucket: &'a str,
}

impl World<'_> {
    /// Mounts with nothing cached; `round` names what is new each time.
    pub(crate) fn mount(&self, kind: Kind, round: usize) -> Result<Mounted> {
        let name = format!("{}-{round}", kind.name().replace(' ', "-"));
        let (directory, cache) = (self.folder.join(format!("mount-{name}")), self.folder.join(format!("cache-{name}")));
        fs::create_dir_all(&directory)?;
        fs::create_dir_all(&cache)?;
        let child = match kind {
            Kind::Fluvial => {
                self.fluvial(&name, &directory)?;
                None
            }
            Kind::Rclone => Some(self.rclone(&directory, &cache)?),
            Kind::S3fs => Some(self.s3fs(&directory)?),
            Kind::Juicefs => Some(self.juicefs(&directory, &cache)?),
        };
        let mounted = Mounted { directory, child };
        mounted.wait(true)?;
        Ok(mounted)
    }

    fn fluvial(&self, name: &str, directory: &Path) -> Result<()> {
        let (mount, options) = (format!("s3://{}", self.bucket), s3_options(self.minio));
        let mut arguments = vec!["dataset", "create", name, "--mount", &mount, "--wait"];
        arguments.extend(options.iter().map(String::as_str));
        self.server.run(&arguments)?;
        let directory = directory.to_str().context("a UTF-8 path")?;
        self.server.run(&["mount", name, directory, "--detach"])
    }

    fn rclone(&self, directory: &Path, cache: &Path) -> Result<Child> {
        let mut command = Command::new(programs::peer("rclone")?);
        command.envs(rclone::environment(self.minio, &["ONE"]));
        command.args(["--config", "", "mount", &format!("one:{}", self.bucket)]).arg(directory);
        command.args(["--read-only", "--vfs-cache-mode", "full", "--dir-cache-time", "1h", "--cache-dir"]).arg(cache);
        // Its fastest setting for large files: several streams for one.
        command.args(["--vfs-read-chunk-streams", "8", "--vfs-read-chunk-size", "8M"]);
        self.spawn(command)
    }

    fn s3fs(&self, directory: &Path) -> Result<Child> {
        use std::os::unix::fs::PermissionsExt as _;
        let keys = self.folder.join("s3fs-keys");
        fs::write(&keys, format!("{}:{}", self.minio.access_key, self.minio.secret_key))?;
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
        let mut command = Command::new("s3fs");
        command.arg(self.bucket).arg(directory).arg("-f");
        let options = format!(
            "url={},use_path_request_style,passwd_file={},parallel_count=16,multipart_size=16,max_stat_cache_size=100000,ro",
            self.minio.endpoint,
            keys.display()
        );
        command.args(["-o", &options]);
        self.spawn(command)
    }

    /// The volume that [`World::fill_juicefs`] has filled.
    fn juicefs(&self, directory: &Path, cache: &Path) -> Result<Child> {
        let mut command = self.juicefs_command("mount")?;
        command.args(["--read-only", "--buffer-size", "600", "--cache-dir"]).arg(cache).arg(self.meta()).arg(directory);
        self.spawn(command)
    }

    fn meta(&self) -> String {
        format!("sqlite3://{}", self.folder.join("juicefs.db").display())
    }

    fn juicefs_command(&self, what: &str) -> Result<Command> {
        let mut command = Command::new(programs::peer("juicefs")?);
        command.args([what, "--no-usage-report"]);
        Ok(command)
    }

    /// Copies files into a JuiceFS volume, which keeps its own layout in the store.
    pub(crate) fn fill_juicefs(&self, from: &Path, bucket: &str) -> Result<()> {
        let mut format = Command::new(programs::peer("juicefs")?);
        format.args(["format", "--storage", "s3", "--bucket", &format!("{}/{bucket}", self.minio.endpoint)]);
        format.args(["--access-key", &self.minio.access_key, "--secret-key", &self.minio.secret_key]);
        format.args(["--trash-days", "0", &self.meta(), "bench"]);
        succeed(format)?;
        let mut sync = Command::new(programs::peer("juicefs")?);
        sync.env("META", self.meta()).args(["sync", &format!("{}/", from.display()), "jfs://META/"]);
        succeed(sync)
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.folder.join("peers.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting {:?}", command.get_program()))
    }

    /// Ends a mount of ours in order.
    pub(crate) fn unmount(&self, kind: Kind, mounted: Mounted) -> Result<()> {
        if kind == Kind::Fluvial {
            self.server.run(&["unmount", mounted.directory.to_str().context("a UTF-8 path")?])?;
        }
        drop(mounted);
        Ok(())
    }
}

impl Mounted {
    fn is_there(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        table.lines().any(|line| line.split(' ').nth(4) == self.directory.to_str())
    }

    fn wait(&self, there: bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.is_there() != there {
            if Instant::now() >= deadline {
                bail!("{} is not mounted or unmounted after {LIMIT:?}", self.directory.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn succeed(mut command: Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{:?} ended with {}: {said}", command.get_program(), output.status);
    Ok(())
}
