//! A federation for one test, run as its users run it: the `fluvial` binary in processes of its own, killed by SIGKILL
//! when a test says so and when it ends.
//!
//! [`Federation`] has hubs and members as separate processes, each of which can be killed and started again; [`Up`] has
//! all of them in one. Both lie in a temporary folder with one log file a process, whose end is shown when a wait fails.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::bed::{bed_bin, fluvial_bin, free_port};
use crate::disk::Disk;
use crate::network::Network;
use crate::wait::wait_for;

/// How long an election, a start, a join or a small operation may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How the hub's API is reached.
#[derive(Debug, Clone)]
pub struct Api {
    /// The administrator's.
    pub kubeconfig: PathBuf,
}

/// A process that does not outlive its test.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

/// `fluvial up` in one process.
#[derive(Debug)]
pub struct Up {
    folder: TempDir,
    arguments: Vec<String>,
    process: Option<Process>,
    /// The line that it printed when it was ready.
    pub ready: Value,
    pub api: Api,
}

/// Hubs and members, each a process.
#[derive(Debug)]
pub struct Federation {
    /// Running hubs by number, from 1.
    hubs: BTreeMap<usize, Process>,
    members: BTreeMap<String, Process>,
    /// Further machines of clusters, by name.
    nodes: BTreeMap<String, Process>,
    /// What every `hub run` is given beside its folder.
    hub_arguments: Vec<String>,
    /// What the environment of a hub has beside that of the test.
    pub hub_environment: BTreeMap<usize, Vec<(String, String)>>,
    /// What every `hub init` and `hub join` is given beside its folder and address.
    made_with: Vec<String>,
    /// What every `member run` is given beside its folder and name.
    pub member_arguments: Vec<String>,
    /// `https://HOST:PORT` of each hub.
    pub urls: Vec<String>,
    pub api: Api,
    /// What the hubs keep everything on, if each has a disk of its own.
    pub disks: Vec<Disk>,
    /// Where the hubs are, if each is on a machine of its own.
    pub network: Option<Network>,
    /// Goes last: disks are in it.
    folder: TempDir,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = || OpenOptions::new().create(true).append(true).open(log).expect("a log file can be written");
        let child = command.stdin(Stdio::null()).stdout(file()).stderr(file()).spawn().expect("fluvial can be started");
        Self { child }
    }

    /// The process's number, to signal it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself: that is what some tests are about.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Standard output of a command that succeeded, else its standard error.
pub fn said(output: Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

impl Api {
    /// `fluvial` with this kubeconfig, to add arguments to.
    pub fn command(&self) -> Command {
        let mut command = Command::new(fluvial_bin());
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// Runs `fluvial`.
    ///
    /// # Errors
    /// With its standard error, if it exits with another code than 0.
    pub fn fluvial(&self, arguments: &[&str]) -> Result<String, String> {
        said(self.command().args(arguments).output().expect("fluvial can be started"))
    }

    /// Runs a stock `kubectl`.
    ///
    /// # Errors
    /// With its standard error, if it exits with another code than 0.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(bed_bin("kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--request-timeout=20s").args(arguments);
        said(command.output().expect("kubectl can be started"))
    }

    /// Applies YAML with `kubectl`.
    ///
    /// # Errors
    /// With what kubectl says.
    pub fn apply(&self, yaml: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        std::fs::write(file.path(), yaml).expect("a temporary file can be written");
        self.kubectl(&["apply", "-f", &file.path().display().to_string()])
    }

    /// Makes objects of YAML with `kubectl`, which remembers nothing of them: they may be large.
    ///
    /// # Errors
    /// With what kubectl says.
    pub fn create(&self, yaml: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        std::fs::write(file.path(), yaml).expect("a temporary file can be written");
        self.kubectl(&["create", "-f", &file.path().display().to_string()])
    }

    /// One object, if it is there.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let found = self.kubectl(&["get", kind, name, "-o", "json"]).ok()?;
        Some(serde_json::from_str(&found).expect("kubectl prints JSON"))
    }

    /// Waits until a part of an object (a JSON pointer) satisfies `good`, and returns the object.
    #[track_caller]
    pub fn wait_until(&self, kind: &str, name: &str, pointer: &str, good: impl Fn(&Value) -> bool) -> Value {
        self.wait_long(DEADLINE, kind, name, pointer, good)
    }

    /// The same, with a deadline of its own.
    #[track_caller]
    pub fn wait_long(
        &self,
        deadline: Duration,
        kind: &str,
        name: &str,
        pointer: &str,
        good: impl Fn(&Value) -> bool,
    ) -> Value {
        wait_for(deadline, &format!("{pointer} of {kind} {name}"), || {
            let object = self.get(kind, name).unwrap_or(Value::Null);
            if object.pointer(pointer).is_some_and(&good) { Ok(object) } else { Err(object["status"].to_string()) }
        })
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// With what the hub says.
    pub fn query(&self, sql: &str) -> Result<Value, String> {
        let text = self.fluvial(&["query", "-o", "json", sql])?;
        Ok(serde_json::from_str(&text).expect("the answer is JSON"))
    }
}

impl Up {
    /// Starts `fluvial up` with so many hubs and these members, and waits until it is ready.
    #[track_caller]
    pub fn start(hubs: usize, members: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let arguments = vec![
            "up".to_owned(),
            "--data-dir".to_owned(),
            folder.path().join("data").display().to_string(),
            "--hubs".to_owned(),
            hubs.to_string(),
            "--members".to_owned(),
            members.join(","),
            "--listen".to_owned(),
            format!("127.0.0.1:{}", free_port()),
        ];
        let api = Api { kubeconfig: folder.path().join("data/kubeconfig") };
        let mut up = Self { folder, arguments, process: None, ready: Value::Null, api };
        up.run();
        up
    }

    /// Runs it on its folder, after [`Up::kill`] too.
    #[track_caller]
    pub fn run(&mut self) {
        let log = self.folder.path().join("up.log");
        let stderr = File::options().create(true).append(true).open(&log).expect("a log file can be written");
        let mut child = Command::new(fluvial_bin())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("fluvial can be started");
        let stdout = child.stdout.take().expect("its output is a pipe");
        let process = Process { child };
        let (line, said) = std::sync::mpsc::channel();
        // Ends with the process, whose output it reads.
        std::thread::spawn(move || {
            let mut first = String::new();
            let _ = BufReader::new(stdout).read_line(&mut first);
            let _ = line.send(first);
        });
        let first = said.recv_timeout(DEADLINE).unwrap_or_default();
        let ready = serde_json::from_str(&first);
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        self.ready = ready.unwrap_or_else(|error| panic!("`fluvial up` printed {first:?} ({error}); {}", log()));
        self.process = Some(process);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// A folder of this test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Federation {
    /// Starts so many hubs, and the members, which join by tokens; returns when all clusters are Ready.
    #[track_caller]
    pub fn start(hubs: usize, members: &[&str]) -> Self {
        Self::start_with(hubs, members, &[])
    }

    /// The same, with arguments for every `hub run`.
    #[track_caller]
    pub fn start_with(hubs: usize, members: &[&str], hub_arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::start_on((folder, Vec::new(), None), hubs, members, hub_arguments, &[])
    }

    /// The same, with arguments for every `hub init` and `hub join`.
    #[track_caller]
    pub fn start_made_with(hubs: usize, members: &[&str], made_with: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::start_on((folder, Vec::new(), None), hubs, members, &[], made_with)
    }

    /// So many hubs, each on a machine and a disk of its own.
    #[track_caller]
    pub fn start_on_disks(hubs: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = |number: usize, what: &str| folder.path().join(format!("{what}-{number}"));
        let disks = (1..=hubs).map(|hub| Disk::new(path(hub, "image"), path(hub, "disk"), 128)).collect();
        Self::start_on((folder, disks, Some(Network::new(hubs))), hubs, &[], &[], &[])
    }

    /// So many hubs, each on a machine of its own.
    #[track_caller]
    pub fn start_apart(hubs: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::start_on((folder, Vec::new(), Some(Network::new(hubs))), hubs, &[], &[], &[])
    }

    /// The same, with room for so many machines in all, and with arguments for every `hub run`.
    #[track_caller]
    pub fn start_apart_with(hubs: usize, machines: usize, hub_arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::start_on((folder, Vec::new(), Some(Network::new(machines))), hubs, &[], hub_arguments, &[])
    }

    #[track_caller]
    fn start_on(
        (folder, disks, network): (TempDir, Vec<Disk>, Option<Network>),
        hubs: usize,
        members: &[&str],
        hub_arguments: &[&str],
        made_with: &[&str],
    ) -> Self {
        let owned = |all: &[&str]| all.iter().map(|&argument| argument.to_owned()).collect();
        let mut federation = Self {
            disks,
            network,
            api: Api { kubeconfig: folder.path().join("kubeconfig") },
            folder,
            hubs: BTreeMap::new(),
            members: BTreeMap::new(),
            nodes: BTreeMap::new(),
            hub_arguments: owned(hub_arguments),
            made_with: owned(made_with),
            member_arguments: Vec::new(),
            hub_environment: BTreeMap::new(),
            urls: Vec::new(),
        };
        for number in 1..=hubs {
            federation.make_hub(number);
        }
        federation.until_voters(1, hubs);
        for name in members {
            federation.add_member(name);
        }
        for name in members {
            federation.api.wait_until("cluster", name, "/status/state", |state| state == "Ready");
        }
        federation
    }

    /// Lets a member join and runs it.
    #[track_caller]
    pub fn add_member(&mut self, name: &str) {
        let token = self.token(&["--cluster", name]);
        self.join_member(name, &token).expect("the member joins");
        self.run_member(name);
    }

    /// Makes one more hub, or, if it is the first, the federation; returns when it answers.
    #[track_caller]
    pub fn make_hub(&mut self, number: usize) {
        self.set_up_hub(number);
        self.run_hub(number);
        wait_for(DEADLINE, "the hub answers", || self.on(number, &["get", "namespace", "default"]).map(|_| ()));
    }

    /// Lets one more hub join, at the next number, without running it.
    #[track_caller]
    pub fn join_hub(&mut self) -> usize {
        let number = self.urls.len() + 1;
        self.set_up_hub(number);
        number
    }

    #[track_caller]
    fn set_up_hub(&mut self, number: usize) {
        let listen = match &self.network {
            Some(network) => format!("{}:7461", network.address(number)),
            None => format!("127.0.0.1:{}", free_port()),
        };
        let data_dir = self.hub_dir(number);
        let data_dir = data_dir.to_str().expect("a UTF-8 path");
        if number == 1 {
            let mut init = Command::new(fluvial_bin());
            init.args(["hub", "init", "--listen", &listen, "--data-dir", data_dir, "--kubeconfig"]);
            init.arg(&self.api.kubeconfig).args(&self.made_with);
            said(init.output().expect("fluvial can be started")).expect("the hub is made");
        } else {
            let token = self.token(&["--hub"]);
            let url = &self.urls[0];
            let mut join = self.api.command();
            join.args(["hub", "join", "--hub", url, "--token", &token, "--listen", &listen, "--data-dir", data_dir]);
            said(join.args(&self.made_with).output().expect("fluvial can be started")).expect("the hub joins");
        }
        self.urls.push(format!("https://{listen}"));
    }

    /// Waits until so many hubs vote, as hub `witness` says, and no other is there.
    #[track_caller]
    pub fn until_voters(&self, witness: usize, voters: usize) {
        wait_for(DEADLINE, "the hubs vote", || {
            let members =
                self.on(witness, &["--request-timeout=5s", "get", "--raw", "/apis/fluvial.io/v1alpha1/hubs"])?;
            let (all, of_them) = (members.matches("\"role\"").count(), members.matches("\"voter\"").count());
            if (all, of_them) == (voters, voters) { Ok(()) } else { Err(members) }
        });
    }

    /// Lets one more hub join, at the next number, and runs it.
    #[track_caller]
    pub fn add_hub(&mut self) -> usize {
        let number = self.urls.len() + 1;
        self.make_hub(number);
        number
    }

    /// The id that a hub has in the federation.
    #[track_caller]
    pub fn hub_id(&self, number: usize) -> u64 {
        let record = std::fs::read(self.hub_dir(number).join("hub.json")).expect("the hub has a record");
        let record: Value = serde_json::from_slice(&record).expect("it is JSON");
        record["nodeId"].as_u64().expect("it has an id")
    }

    /// Takes a hub out of the federation for good, asking hub `at`.
    ///
    /// # Errors
    /// With what it says.
    pub fn remove_hub(&self, at: usize, number: usize) -> Result<String, String> {
        let kubeconfig = std::fs::read_to_string(&self.api.kubeconfig).expect("there is a kubeconfig");
        let other = self.folder.path().join(format!("kubeconfig-{at}"));
        std::fs::write(&other, kubeconfig.replace(&self.urls[0], &self.urls[at - 1])).expect("a file can be written");
        let api = Api { kubeconfig: other };
        api.fluvial(&["hub", "remove", &self.hub_id(number).to_string(), "--timeout", "30s"])
    }

    /// A new token for what `arguments` of `fluvial token create` say.
    #[track_caller]
    pub fn token(&self, arguments: &[&str]) -> String {
        let line = self.api.fluvial(&[&["token", "create"], arguments].concat()).expect("a token is made");
        line.split_whitespace().skip_while(|word| *word != "--token").nth(1).expect("it has a token").to_owned()
    }

    /// Lets a member join, in its folder.
    ///
    /// # Errors
    /// With what it says.
    pub fn join_member(&self, name: &str, token: &str) -> Result<String, String> {
        let data_dir = self.member_dir(name);
        let data_dir = data_dir.to_str().expect("a UTF-8 path");
        self.api.fluvial(&["member", "join", "--hub", &self.urls[0], "--token", token, "--data-dir", data_dir])
    }

    /// `kubectl` on one hub.
    ///
    /// # Errors
    /// With what it says.
    pub fn on(&self, hub: usize, arguments: &[&str]) -> Result<String, String> {
        self.api.kubectl(&[&["--server", &self.urls[hub - 1]], arguments].concat())
    }

    /// The number of the hub that leads.
    #[track_caller]
    pub fn leader(&self) -> usize {
        wait_for(DEADLINE, "a leader", || {
            let running = *self.hubs.keys().next().ok_or("no hub runs")?;
            self.leader_seen_by(running)
        })
    }

    /// The number of the hub that leads, as hub `witness` says.
    ///
    /// # Errors
    /// If it does not know, or gives no answer within two seconds.
    pub fn leader_seen_by(&self, witness: usize) -> Result<usize, String> {
        let hubs = self.on(witness, &["--request-timeout=2s", "get", "--raw", "/apis/fluvial.io/v1alpha1/hubs"])?;
        let hubs: Value = serde_json::from_str(&hubs).map_err(|error| error.to_string())?;
        let leader = hubs["items"].as_array().into_iter().flatten().find(|hub| hub["leader"] == true);
        let address = leader.and_then(|hub| hub["address"].as_str()).ok_or("nobody leads")?;
        let at = self.urls.iter().position(|url| url.ends_with(address)).ok_or("an unknown hub leads")?;
        Ok(at + 1)
    }

    pub fn run_hub(&mut self, number: usize) {
        let mut command = match &self.network {
            Some(network) => network.command(number, fluvial_bin()),
            None => Command::new(fluvial_bin()),
        };
        command.args(["hub", "run", "--data-dir"]).arg(self.hub_dir(number)).args(&self.hub_arguments);
        command.envs(self.hub_environment.get(&number).into_iter().flatten().cloned());
        let process = Process::start(&mut command, &self.folder.path().join(format!("hub-{number}.log")));
        self.hubs.insert(number, process);
    }

    /// SIGKILL.
    pub fn kill_hub(&mut self, number: usize) {
        self.hubs.remove(&number).expect("it runs").kill();
    }

    /// The numbers of the hubs that were started and not killed.
    pub fn running(&self) -> Vec<usize> {
        self.hubs.keys().copied().collect()
    }

    /// How a hub ended by itself, if it did.
    pub fn hub_ended(&mut self, number: usize) -> Option<ExitStatus> {
        self.hubs.get_mut(&number)?.child.try_wait().expect("a child can be waited for")
    }

    /// Waits until a hub ends by itself, and lets it be started again.
    #[track_caller]
    pub fn hub_ends(&mut self, number: usize) -> ExitStatus {
        let status = wait_for(DEADLINE, "the hub to end by itself", || {
            let said = self.last_said(&format!("hub-{number}"));
            self.hub_ended(number).ok_or(said)
        });
        self.hubs.remove(&number);
        status
    }

    /// SIGTERM, and waits until it has ended by itself.
    #[track_caller]
    pub fn stop_hub(&mut self, number: usize) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.hub_process(number)).expect("a process number"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it can be signalled");
        self.hub_ends(number)
    }

    /// Sends a signal to the process of a hub.
    #[track_caller]
    pub fn signal_hub(&self, number: usize, signal: &str) {
        let process = self.hub_process(number).to_string();
        assert!(Command::new("kill").args([signal, &process]).status().expect("kill can be started").success());
    }

    /// The process of a hub.
    pub fn hub_process(&self, number: usize) -> u32 {
        self.hubs[&number].id()
    }

    pub fn run_member(&mut self, name: &str) {
        let mut command = Command::new(fluvial_bin());
        command
            .args(["member", "run", "--node-name", name, "--data-dir"])
            .arg(self.member_dir(name))
            .args(&self.member_arguments);
        let process = Process::start(&mut command, &self.folder.path().join(format!("member-{name}.log")));
        self.members.insert(name.to_owned(), process);
    }

    /// The process of a member.
    pub fn member_process(&self, name: &str) -> u32 {
        self.members[name].id()
    }

    /// How a member ended by itself, if it did.
    pub fn ended(&mut self, name: &str) -> Option<ExitStatus> {
        self.members.get_mut(name)?.child.try_wait().expect("a child can be waited for")
    }

    /// SIGKILL.
    pub fn kill_member(&mut self, name: &str) {
        self.members.remove(name).expect("it runs").kill();
    }

    /// Lets one more machine join a cluster, and runs it.
    #[track_caller]
    pub fn add_node(&mut self, cluster: &str, name: &str) {
        let token = self.token(&["--cluster", cluster]);
        let data_dir = self.node_dir(name);
        let data_dir = data_dir.to_str().expect("a UTF-8 path");
        let join = ["node", "join", "--hub", &self.urls[0], "--token", &token, "--data-dir", data_dir];
        self.api.fluvial(&[&join[..], &["--node-name", name]].concat()).expect("the node joins");
        self.run_node(name);
    }

    pub fn run_node(&mut self, name: &str) {
        let mut command = Command::new(fluvial_bin());
        command.args(["node", "run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(self.node_dir(name));
        let process = Process::start(&mut command, &self.folder.path().join(format!("node-{name}.log")));
        self.nodes.insert(name.to_owned(), process);
    }

    /// SIGKILL.
    pub fn kill_node(&mut self, name: &str) {
        self.nodes.remove(name).expect("it runs").kill();
    }

    pub fn node_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("node-{name}"))
    }

    /// What a process has logged.
    pub fn log(&self, process: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{process}.log"))).unwrap_or_default()
    }

    /// The last lines of that, the last one first.
    pub fn last_said(&self, process: &str) -> Vec<String> {
        self.log(process).lines().rev().take(5).map(str::to_owned).collect()
    }

    /// A folder of this test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn hub_dir(&self, number: usize) -> PathBuf {
        let disk = self.disks.get(number - 1).map(|disk| disk.directory.as_path());
        disk.unwrap_or(self.folder.path()).join(format!("hub-{number}"))
    }

    pub fn member_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("member-{name}"))
    }
}
