//! A network of one test: a namespace for each machine on a bridge, on which single directions can be cut and slowed.
//!
//! The test itself is on the bridge too, with the address `.1`, and reaches every machine whatever is cut between them. A
//! network is told from those of other tests by the number of its process. Needs root, `ip`, `nft` and `tc`.

use std::ffi::OsStr;
use std::process::Command;

use crate::federation::said;

/// The network; gone when dropped, with every connection on it.
#[derive(Debug)]
pub struct Network {
    /// Tells it from others.
    id: u32,
    machines: usize,
}

/// Runs a program of the system, which must succeed.
#[track_caller]
fn run<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run `tests/bed/install` as root"));
    said(output).unwrap_or_else(|error| panic!("{program} failed: {error}"));
}

/// The number that follows the first `word` of `text`; 0 without one.
fn number_after(text: &str, word: &str) -> u64 {
    let digits =
        text.split_once(word).map_or("", |(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""));
    digits.parse().unwrap_or(0)
}

#[track_caller]
fn ip(line: &str) {
    run("ip", line.split_whitespace());
}

impl Network {
    /// Makes one of so many machines, counted from 1.
    #[track_caller]
    pub fn new(machines: usize) -> Self {
        let network = Self { id: std::process::id() % (64 * 256), machines };
        // What a test that was killed left behind, if its process had this number.
        network.remove();
        let bridge = network.bridge();
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {}/24 dev {bridge}", network.address(0)));
        ip(&format!("link set {bridge} up"));
        for machine in 1..=machines {
            let (space, link) = (network.space(machine), format!("{bridge}n{machine}"));
            ip(&format!("netns add {space}"));
            ip(&format!("link add {link} type veth peer name eth0 netns {space}"));
            ip(&format!("link set {link} master {bridge} up"));
            ip(&format!("-n {space} addr add {}/24 dev eth0", network.address(machine)));
            ip(&format!("-n {space} link set eth0 up"));
            ip(&format!("-n {space} link set lo up"));
            let table = "add table inet faults; add set inet faults deaf { type ipv4_addr; }; \
                         add chain inet faults in { type filter hook input priority 0; }; \
                         add rule inet faults in ip saddr @deaf counter drop; add chain inet faults lossy; \
                         add rule inet faults in jump lossy";
            network.inside(machine, "nft", &[table]);
        }
        network
    }

    fn bridge(&self) -> String {
        format!("fv{}", self.id)
    }

    fn space(&self, machine: usize) -> String {
        format!("{}-{machine}", self.bridge())
    }

    /// The address of a machine; of the test itself, for 0.
    pub fn address(&self, machine: usize) -> String {
        format!("10.{}.{}.{}", 64 + self.id / 256, self.id % 256, machine + 1)
    }

    #[track_caller]
    fn inside(&self, machine: usize, program: &str, arguments: &[&str]) {
        self.asked(machine, program, arguments);
    }

    #[track_caller]
    fn asked(&self, machine: usize, program: &str, arguments: &[&str]) -> String {
        let output = self.command(machine, program).args(arguments).output();
        said(output.unwrap_or_else(|error| panic!("nsenter: {error}")))
            .unwrap_or_else(|error| panic!("{program} failed: {error}"))
    }

    /// A command that runs `program` on a machine. Not by `ip netns exec`, which gives it a view of its own of what is
    /// mounted: a disk that is unmounted here would stay in use there.
    pub fn command(&self, machine: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.space(machine))).arg(program);
        command
    }

    /// From now on `machine` hears nothing of `from`; the other way is open.
    #[track_caller]
    pub fn deafen(&self, machine: usize, from: usize) {
        self.inside(machine, "nft", &[&format!("add element inet faults deaf {{ {} }}", self.address(from))]);
    }

    /// `machine` and the other machines hear nothing of each other.
    #[track_caller]
    pub fn isolate(&self, machine: usize) {
        for other in (1..=self.machines).filter(|other| *other != machine) {
            self.deafen(machine, other);
            self.deafen(other, machine);
        }
    }

    /// Of what the machines send each other, so many packets of a hundred are lost. What the test itself sends is not.
    #[track_caller]
    pub fn lose(&self, percent: u32) {
        for machine in 1..=self.machines {
            let rule = format!(
                "add rule inet faults lossy ip saddr != {} numgen random mod 100 < {percent} counter drop",
                self.address(0)
            );
            self.inside(machine, "nft", &[&rule]);
        }
    }

    /// What `machine` sends goes out at so many kbit/s.
    #[track_caller]
    pub fn slow(&self, machine: usize, kbit: u32) {
        let rate = format!("{kbit}kbit");
        let shape =
            ["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "16kb", "latency", "500ms"];
        self.inside(machine, "tc", &shape);
    }

    /// Packets that were dropped so far because a direction was cut.
    #[track_caller]
    pub fn dropped(&self) -> u64 {
        let listed = |machine| self.asked(machine, "nft", &["list chain inet faults in"]);
        (1..=self.machines).map(|machine| number_after(&listed(machine), "packets ")).sum()
    }

    /// Packets of `machine` that waited since [`Network::slow`].
    #[track_caller]
    pub fn overlimits(&self, machine: usize) -> u64 {
        number_after(&self.asked(machine, "tc", &["-s", "qdisc", "show", "dev", "eth0"]), "overlimits ")
    }

    /// All is as it was at first.
    #[track_caller]
    pub fn heal(&self) {
        for machine in 1..=self.machines {
            self.inside(machine, "nft", &["flush set inet faults deaf; flush chain inet faults lossy"]);
            // There may be none to take away.
            let _ = self.command(machine, "tc").args(["qdisc", "del", "dev", "eth0", "root"]).output();
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Network {
    fn remove(&self) {
        // There may be nothing to remove.
        for machine in 1..=self.machines {
            let _ = Command::new("ip").args(["netns", "del", &self.space(machine)]).output();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge()]).output();
    }
}
