//! Members in processes of their own: one process may have 20,000 files open on many machines, and the hubs' share of a
//! core must not depend on how the members' is scheduled.
//!
//! A process is told one word a line and answers each with a line of JSON, a [`Count`].

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fluvial_tests::members::{Count, Crowd, Issuing, members};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Members of one process.
const EACH: usize = 2_500;
/// Ten thousand keys and certificates take some seconds.
const ANSWER: Duration = Duration::from_secs(60);

/// What a process of members is told when it starts.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder of a hub, for its authority.
    #[arg(long)]
    hub: PathBuf,
    /// HOST:PORT of each hub.
    #[arg(long, value_delimiter = ',')]
    hubs: Vec<String>,
    /// The number of the first member.
    #[arg(long)]
    from: usize,
    /// How many.
    #[arg(long)]
    count: usize,
}

/// Is such a process, until its input ends.
pub(crate) async fn serve(arguments: Arguments) -> Result<()> {
    let Arguments { hub, hubs, from, count } = arguments;
    let crowd = Arc::new(Crowd::default());
    let mut waiting = members(&Issuing::of_hub(&hub)?, &hubs, from..from + count, &crowd)?;
    let mut running = tokio::task::JoinSet::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut out = tokio::io::stdout();
    while let Some(line) = lines.next_line().await? {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("go", _) => waiting.drain(..).for_each(|member| drop(running.spawn(member.run()))),
            ("expect", marker) => crowd.expect(marker),
            ("flap", _) => crowd.flap(true),
            ("calm", _) => crowd.flap(false),
            ("look", _) => {}
            (word, _) => bail!("members do not know \"{word}\""),
        }
        let mut answer = serde_json::to_string(&crowd.count())?;
        answer.push('\n');
        out.write_all(answer.as_bytes()).await?;
        out.flush().await?;
    }
    Ok(())
}

struct Process {
    // Killed on drop.
    _child: Child,
    words: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// All members, in as many processes as they take.
pub(crate) struct Crowds {
    processes: Vec<Process>,
}

impl Crowds {
    /// Starts the processes; nobody connects before [`Crowds::say`] says `go`.
    pub(crate) async fn start(hub: &Path, hubs: &[String], members: usize) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut processes = Vec::new();
        for from in (0..members).step_by(EACH) {
            let count = EACH.min(members - from).to_string();
            let mut child = Command::new(&program)
                .args(["members", "--hubs", &hubs.join(","), "--from", &from.to_string(), "--count", &count, "--hub"])
                .arg(hub)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let (words, answers) = child.stdin.take().zip(child.stdout.take()).context("a child without pipes")?;
            processes.push(Process { _child: child, words, answers: BufReader::new(answers).lines() });
        }
        let mut crowds = Self { processes };
        crowds.say("look").await?;
        Ok(crowds)
    }

    /// Tells all of them a word, and adds up their answers.
    pub(crate) async fn say(&mut self, word: &str) -> Result<Count> {
        for process in &mut self.processes {
            process.words.write_all(format!("{word}\n").as_bytes()).await?;
        }
        let mut sum = Count::default();
        for process in &mut self.processes {
            let line =
                tokio::time::timeout(ANSWER, process.answers.next_line()).await.context("members do not answer")?;
            let Count { connected, welcomes, stored, seen } =
                serde_json::from_str(&line?.context("a process of members has ended")?)?;
            sum.connected += connected;
            sum.welcomes += welcomes;
            sum.stored += stored;
            sum.seen.extend(seen);
        }
        Ok(sum)
    }
}
