//! Group commit: what streams have written becomes durable at the target, then in the journal, many at a time.
//!
//! A stream waits until its part or file is recorded, so that a kill loses one per stream at most.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::TransferError;
use crate::journal::{Done, Journal};
use crate::place::Place;
use crate::place::local::blocking;

/// Records that wait: every stream and every small file under way has one at most (256 streams × 8), and waits for it.
const QUEUE: usize = 2048;

type Waiting = (Done, oneshot::Sender<()>);

/// Hands records to the loop.
#[derive(Clone)]
pub(super) struct Recorder {
    sender: mpsc::Sender<Waiting>,
}

impl Recorder {
    /// Returns once `done` is durable. When the loop has failed, its error ends the copy, and this call never answers
    /// with success.
    pub(super) async fn record(&self, done: Done) -> Result<(), TransferError> {
        let (sender, receiver) = oneshot::channel();
        let ended = TransferError::Cancelled { op: "record progress" };
        if self.sender.send((done, sender)).await.is_err() {
            return Err(ended);
        }
        receiver.await.map_err(|_| ended)
    }
}

/// The recorder, and the loop that must be run beside what uses it; it ends when all recorders are gone.
pub(super) fn recorder(
    job: String,
    journal: Journal,
    target: Arc<dyn Place>,
) -> (Recorder, impl Future<Output = Result<(), TransferError>>) {
    let (sender, mut receiver) = mpsc::channel::<Waiting>(QUEUE);
    let run = async move {
        let mut batch = Vec::new();
        while receiver.recv_many(&mut batch, QUEUE).await > 0 {
            let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut batch).into_iter().unzip();
            let files: Vec<_> = done
                .iter()
                .filter_map(|done| match done {
                    Done::File(file) => Some(file.path.clone()),
                    // Parts are durable when they are written.
                    Done::Part(_) => None,
                })
                .collect();
            if !files.is_empty() {
                target.sync(&files).await?;
            }
            let (journal, job) = (journal.clone(), job.clone());
            blocking(move || journal.record(&job, &done)).await?;
            for waiting in waiting {
                // A stream that does not wait any more was aborted.
                let _ = waiting.send(());
            }
        }
        Ok(())
    };
    (Recorder { sender }, run)
}
