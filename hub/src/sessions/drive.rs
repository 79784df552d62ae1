//! One session from hello to its end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fluvial_model::liveness::{HEARTBEAT, UNREACHABLE_AFTER};
use fluvial_model::report::{AgentReport, StoredReport};
use fluvial_model::store::Revision;
use fluvial_proto::v1;
use fluvial_proto::v1::agent_message::Message as FromAgent;
use fluvial_proto::v1::hub_message::Message as ToAgent;
use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::feed::{Feed, Queue};
use super::rates::Telling;
use super::registry::Place;
use super::reports::{Inbox, Writer};
use super::{Outgoing, SessionContext, claim, epoch, object_status, store_status};
use crate::recovery;

/// An agent says hello first, and soon.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The most questions that one agent has before it at a time.
const MAX_ASKED: usize = 64;
/// A session lasts about an hour, so that agents spread anew over the hubs; the spread keeps them from moving together.
const LIFE: Duration = Duration::from_secs(3600);
const LIFE_SPREAD: f64 = 0.25;
/// Agents that are sent elsewhere come back within this time, not all at once.
const MOVE_WITHIN_MS: u64 = 2000;
/// Denied identities in one message, each of some 100 bytes.
const DENIED_AT_ONCE: usize = 1000;
/// How long the last message may take to leave.
const GOODBYE: Duration = Duration::from_secs(1);

pub(super) struct Session {
    context: SessionContext,
    cluster: String,
    outbound: mpsc::Sender<Outgoing>,
    ending: CancellationToken,
}

/// What is to be said beside the assignments.
#[derive(Default)]
struct Talk {
    heartbeat: Option<u64>,
    /// Questions not yet sent; at most [`MAX_ASKED`] with those in `asked`.
    questions: Vec<v1::Ask>,
    asked: HashMap<u64, oneshot::Sender<v1::AskReply>>,
    last_ask: u64,
    /// Whom not to believe any more.
    denied: Vec<v1::Denied>,
    rates: Telling,
}

/// Why a session ends.
enum End {
    /// The agent ended it, or its connection broke.
    Left,
    /// It should come back here or elsewhere.
    Move,
    Refused(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl Session {
    pub(super) fn new(
        context: SessionContext,
        cluster: String,
        outbound: mpsc::Sender<Outgoing>,
        ending: CancellationToken,
    ) -> Self {
        Self { context, cluster, outbound, ending }
    }

    pub(super) async fn run(self, inbound: Streaming<v1::AgentMessage>) {
        let end = match Box::pin(self.serve(inbound)).await {
            Ok(end) | Err(end) => end,
        };
        let last = match end {
            End::Left => return tracing::debug!(cluster = self.cluster, "session over"),
            End::Move => Ok(message(ToAgent::MoveAfterMs(rand::random_range(0..MOVE_WITHIN_MS)))),
            End::Refused(status) => {
                tracing::info!(cluster = self.cluster, code = ?status.code(), why = status.message(), "session refused");
                Err(status)
            }
        };
        // If it does not leave in time, the end of the stream says enough.
        let _ = self.outbound.send_timeout(Box::new(last), GOODBYE).await;
    }

    async fn serve(&self, mut inbound: Streaming<v1::AgentMessage>) -> Result<End, End> {
        let hello = self.hello(&mut inbound).await?;
        let report: AgentReport = serde_json::from_slice(&hello.agent_report)
            .map_err(|error| Status::invalid_argument(format!("the agent's report cannot be read: {error}")))?;
        let epoch = epoch(&self.context.objects).await.map_err(|error| store_status(&error))?;
        if hello.newest_epoch > epoch {
            tracing::error!(
                cluster = self.cluster,
                "an agent knows hubs that replaced this one: end this hub for good"
            );
            return Err(Status::unavailable(
                "this hub belongs to hubs that were replaced by a restore, which this agent has met",
            )
            .into());
        }
        let recovering = recovery::under_way(&self.context.objects).await.map_err(|error| store_status(&error))?;
        let recovering = recovering.is_some();
        Box::pin(claim::claim(&self.context, &self.cluster, &report)).await?;
        Box::pin(claim::alone(&self.context, &self.cluster, &report)).await?;
        // Before the first reading: a change in between is then seen twice rather than never.
        let secrets = self.context.secrets.subscribe();
        let place = self.context.registry.enter(&self.cluster, &report.instance);
        self.context.liveness.heard(&self.cluster, Duration::ZERO);
        let cursor = Revision(hello.cursor);
        let feed = Box::pin(Feed::open(&self.context.objects, &self.cluster, hello.epoch == epoch, cursor)).await;
        let feed = feed.map_err(|error| object_status(&error))?;
        tracing::info!(cluster = self.cluster, full = feed.full, cursor = cursor.0, "session begins");
        let hubs = self.context.peers.hubs().into_iter().map(|hub| hub.address).collect();
        self.send(ToAgent::Welcome(v1::Welcome { epoch, full: feed.full, hubs, recovering })).await?;
        let caught_up = caught_up(self.context.recovering.clone(), recovering);
        self.talk(inbound, feed, (secrets, place), caught_up).await
    }

    async fn hello(&self, inbound: &mut Streaming<v1::AgentMessage>) -> Result<v1::Hello, End> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
        match first {
            Ok(Ok(Some(v1::AgentMessage { message: Some(FromAgent::Hello(hello)) }))) => Ok(hello),
            Ok(Ok(Some(_))) => Err(Status::invalid_argument("the first message must be a hello").into()),
            Ok(Ok(None) | Err(_)) => Err(End::Left),
            Err(_) => Err(Status::deadline_exceeded("no hello came").into()),
        }
    }

    async fn send(&self, what: ToAgent) -> Result<(), End> {
        self.outbound.send(Box::new(Ok(message(what)))).await.map_err(|_| End::Left)
    }

    async fn talk(
        &self,
        mut inbound: Streaming<v1::AgentMessage>,
        feed: Feed,
        (mut secrets, mut place): (broadcast::Receiver<Option<Arc<str>>>, Place),
        caught_up: impl Future<Output = ()>,
    ) -> Result<End, End> {
        let Feed { mut watch, mut queue, .. } = feed;
        let inbox = Inbox::default();
        let writer =
            Writer { context: &self.context, cluster: &self.cluster, inbox: &inbox, outbound: self.outbound.clone() };
        let mut writing = std::pin::pin!(writer.run());
        let mut talk = Talk::default();
        let mut denied_changed = self.context.denied_changed.clone();
        denied_changed.mark_unchanged();
        let mut denied = self.context.denied.current();
        talk.deny(&denied.identities, &BTreeMap::new());
        let mut rates = self.context.rates.subscribe();
        talk.rates.note(&rates.borrow_and_update(), &self.cluster);
        let mut caught_up = std::pin::pin!(caught_up);
        let mut heard = Instant::now();
        let mut tick = tokio::time::interval(HEARTBEAT);
        let mut life =
            std::pin::pin!(tokio::time::sleep(LIFE.mul_f64(rand::random_range(1.0 - LIFE_SPREAD..1.0 + LIFE_SPREAD))));
        loop {
            tokio::select! {
                said = inbound.message() => {
                    let Ok(Some(said)) = said else { return Ok(End::Left) };
                    heard = Instant::now();
                    self.context.liveness.heard(&self.cluster, Duration::ZERO);
                    self.hear(said, &inbox, &mut talk)?;
                }
                events = watch.next() => queue.note(&events.map_err(|error| store_status(&error))?),
                change = secrets.recv() => match change {
                    Ok(key) => queue.note_secret(key.as_deref()),
                    Err(broadcast::error::RecvError::Lagged(_)) => queue.note_secret(None),
                    Err(broadcast::error::RecvError::Closed) => return Ok(End::Move),
                },
                room = self.outbound.reserve(), if talk.has_work() || queue.has_work(watch.revision()) => {
                    let Ok(room) = room else { return Ok(End::Left) };
                    if let Some(next) = Box::pin(next_message(&mut talk, &mut queue, watch.revision())).await? {
                        room.send(Box::new(Ok(message(next))));
                    }
                }
                question = place.questions.recv(), if talk.asked.len() < MAX_ASKED => {
                    // The registry holds the other end for as long as the place is ours.
                    let Some(question) = question else { return Err(taken_over()) };
                    talk.ask(question.ask, question.answer);
                }
                status = writing.as_mut() => return Err(status.into()),
                _ = tick.tick() => {
                    if heard.elapsed() > UNREACHABLE_AFTER {
                        return Err(Status::deadline_exceeded("the agent fell silent").into());
                    }
                    talk.forget_abandoned();
                    queue.owe_sync();
                }
                Ok(()) = denied_changed.changed() => {
                    let now = self.context.denied.current();
                    talk.deny(&now.identities, &denied.identities);
                    denied = now;
                }
                Ok(()) = rates.changed() => talk.rates.note(&rates.borrow_and_update(), &self.cluster),
                () = place.replaced.cancelled() => return Err(taken_over()),
                () = life.as_mut() => return Ok(End::Move),
                // It comes back and hears what holds from now on.
                () = caught_up.as_mut() => return Ok(End::Move),
                () = self.ending.cancelled() => return Ok(End::Move),
            }
        }
    }

    fn hear(&self, said: v1::AgentMessage, inbox: &Inbox, talk: &mut Talk) -> Result<(), Status> {
        let unreadable =
            |what, error: serde_json::Error| Status::invalid_argument(format!("{what} cannot be read: {error}"));
        match said.message {
            Some(FromAgent::Heartbeat(heartbeat)) => talk.heartbeat = Some(heartbeat.sequence),
            Some(FromAgent::Report(report)) => {
                let content = serde_json::from_slice(&report.report).map_err(|error| unreadable("a report", error))?;
                inbox.put(report.id, StoredReport { generation: report.generation, report: content })?;
            }
            Some(FromAgent::AgentReport(report)) => {
                inbox.put_agent(
                    serde_json::from_slice(&report).map_err(|error| unreadable("the agent's report", error))?,
                );
            }
            Some(FromAgent::Ack(ack)) if !ack.refused.is_empty() => {
                tracing::warn!(
                    cluster = self.cluster,
                    id = ack.id,
                    generation = ack.generation,
                    why = ack.refused,
                    "the agent refused an assignment"
                );
            }
            Some(FromAgent::Ack(_)) => {}
            Some(FromAgent::Reply(reply)) => talk.answer(reply),
            Some(FromAgent::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
            // A newer agent may say more than this hub understands.
            None => {}
        }
        Ok(())
    }
}

/// Waits until an agent that was welcomed to a recovering hub is to be welcomed anew; for ever if it was not.
async fn caught_up(mut recovering: watch::Receiver<bool>, welcomed_so: bool) {
    // The sender is gone when the hub ends, which ends the session by itself.
    if !welcomed_so || recovering.wait_for(|recovering| !recovering).await.is_err() {
        std::future::pending().await
    }
}

fn taken_over() -> End {
    End::Refused(Status::aborted("a newer session of this agent took over"))
}

async fn next_message(talk: &mut Talk, queue: &mut Queue, at: Revision) -> Result<Option<ToAgent>, Status> {
    if let Some(next) = talk.next() {
        return Ok(Some(next));
    }
    queue.next(at).await.map_err(|error| object_status(&error))
}

fn message(message: ToAgent) -> v1::HubMessage {
    v1::HubMessage { message: Some(message) }
}

impl Talk {
    fn has_work(&self) -> bool {
        self.heartbeat.is_some() || !self.questions.is_empty() || !self.denied.is_empty() || self.rates.waits()
    }

    fn next(&mut self) -> Option<ToAgent> {
        let heartbeat = self.heartbeat.take().map(|sequence| ToAgent::Heartbeat(v1::Heartbeat { sequence }));
        let denied = || self.denied.pop().map(ToAgent::Denied);
        let rates = || self.rates.take().map(ToAgent::Rates);
        heartbeat.or_else(denied).or_else(rates).or_else(|| self.questions.pop().map(ToAgent::Ask))
    }

    /// Puts together what the agent does not know yet of whose certificates are not accepted.
    fn deny(&mut self, now: &BTreeMap<String, Timestamp>, known: &BTreeMap<String, Timestamp>) {
        let news = now.iter().filter(|(identity, before)| known.get(*identity) != Some(*before));
        let identities: Vec<v1::DeniedIdentity> = news
            .map(|(identity, before)| v1::DeniedIdentity {
                identity: identity.clone(),
                before_ns: i64::try_from(before.as_nanosecond()).unwrap_or(i64::MAX),
            })
            .collect();
        self.denied.extend(identities.chunks(DENIED_AT_ONCE).map(|some| v1::Denied { identities: some.to_vec() }));
    }

    /// Numbers are the session's own: whoever asked gets its own number back.
    fn ask(&mut self, mut ask: v1::Ask, answer: oneshot::Sender<v1::AskReply>) {
        self.last_ask += 1;
        ask.id = self.last_ask;
        self.asked.insert(self.last_ask, answer);
        self.questions.push(ask);
    }

    fn answer(&mut self, reply: v1::AskReply) {
        // Whoever asked may have stopped waiting.
        if let Some(answer) = self.asked.remove(&reply.id) {
            let _ = answer.send(reply);
        }
    }

    fn forget_abandoned(&mut self) {
        self.asked.retain(|_, answer| !answer.is_closed());
        self.questions.retain(|ask| self.asked.contains_key(&ask.id));
    }
}
