//! Questions of the hub, answered at once and kept nowhere.

use std::time::Duration;

use bytes::Bytes;
use fluvial_model::desired::Endpoint;
use fluvial_model::report::Problem;
use fluvial_proto::v1::ask::Question;
use fluvial_proto::v1::{Ask, AskReply, ReadFile, WhichProcess};

use crate::ledger::Secrets;
use crate::reconciler::locate;
use crate::reconciler::report::Trouble;

/// Bytes of one answer at most.
pub const LONGEST_READ: u32 = 1 << 20;
/// How long reading may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

fn problem(reason: &str, message: String) -> Problem {
    Problem { reason: reason.to_owned(), message, retrying: false }
}

/// The answer to a question that is not taken up, because too many are.
pub(super) fn busy(ask: &Ask) -> AskReply {
    reply(ask.id, Err(problem("Unreachable", "answer: the agent has too many questions at once; ask again".to_owned())))
}

/// The answer of the agent whose process is called `process`.
pub(super) async fn answer(ask: Ask, process: Bytes) -> AskReply {
    let answer = match ask.question {
        Some(Question::ReadFile(question)) => {
            match tokio::time::timeout(READ_TIMEOUT, Box::pin(read_file(question))).await {
                Ok(answer) => answer,
                Err(_) => Err(problem("Unreachable", format!("read file: no answer within {READ_TIMEOUT:?}"))),
            }
        }
        Some(Question::WhichProcess(WhichProcess {})) => Ok(process),
        None => Err(problem("Unsupported", "answer: this agent does not know the question".to_owned())),
    };
    reply(ask.id, answer)
}

fn reply(id: u64, answer: Result<Bytes, Problem>) -> AskReply {
    match answer {
        Ok(data) => AskReply { id, data, problem: Bytes::new() },
        Err(problem) => {
            let problem = serde_json::to_vec(&problem).expect("two texts and a flag can be written as JSON");
            AskReply { id, data: Bytes::new(), problem: problem.into() }
        }
    }
}

async fn read_file(question: ReadFile) -> Result<Bytes, Problem> {
    let ReadFile { sources, secrets, path, offset, length } = question;
    let invalid = |message: String| problem("Invalid", message);
    let sources: Vec<Endpoint> =
        serde_json::from_slice(&sources).map_err(|e| invalid(format!("read file: sources: {e}")))?;
    let secrets = Secrets(secrets.into_iter().collect());
    let path = locate::path(&path).map_err(|error| invalid(format!("read file: {error}")))?;
    let read = async {
        let mounts = locate::mounts(&sources, &secrets)?;
        let length = u64::from(length.min(LONGEST_READ));
        Ok::<_, Trouble>(fluvial_transfer::read_range(&mounts, &path, offset, length).await?)
    };
    read.await.map_err(|trouble| match trouble {
        Trouble::Problem(problem) => Problem { retrying: false, ..problem },
        Trouble::Cancelled => problem("Internal", "read file: the agent is ending".to_owned()),
    })
}
