//! One session with one hub, from the first word to the last.
//!
//! The agent says who it is and up to where it knows what is wanted; the hub welcomes it, sends what is new, says when that
//! was all, and goes on. Each assignment is in the ledger before it is acknowledged. Of every assignment at most one report
//! is on its way, so that an acknowledgement, which names only id and generation, can mean no other than that one.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fluvial_certs::Identity;
use fluvial_model::desired::{Acceptance, Work};
use fluvial_model::liveness::HEARTBEAT;
use fluvial_model::report::AgentReport;
use fluvial_model::share::Node;
use fluvial_proto::v1::agent_message::Message as Said;
use fluvial_proto::v1::agent_service_client::AgentServiceClient;
use fluvial_proto::v1::hub_message::Message as Heard;
use fluvial_proto::v1::{Ack, AgentMessage, Assign, Heartbeat, Hello, HubMessage, Welcome, WorkReport};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, Sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Ended, Lost, Uplink, UplinkState, ask, renew};
use crate::connect;
use crate::ledger::{Assignment, Ledger, Position, Secrets};

/// A hub that says nothing for so long (three heartbeats) is gone.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a hub may take to open the session.
const OPENING: Duration = Duration::from_secs(10);
/// Messages on their way out: reports of some KiB, answers of up to 1 MiB of which there are [`ASKS`] at most.
const OUTBOUND: usize = 64;
/// Reports on their way.
const REPORTS: usize = 32;
/// A report that was not acknowledged for so long is sent again.
const REPORT_AGAIN: Duration = Duration::from_secs(30);
/// Questions that are being answered: 8 × 1 MiB.
const ASKS: usize = 8;

/// Why something was not done that a hub said which has not caught up.
const KEPT: &str = "it is kept as it is until the restored hub has caught up";

struct Session<'a> {
    uplink: &'a mut Uplink,
    address: &'a str,
    out: mpsc::Sender<AgentMessage>,
    welcomed: Option<Welcome>,
    /// Ids heard of in a full synchronisation that is not complete.
    mentioned: Option<HashSet<String>>,
    /// Whether generations can be compared with those in the ledger.
    same_history: bool,
    /// The hub was restored and has not caught up: what is held stays as it is, and nothing is taken away.
    keeping: bool,
    /// Reports on their way, by assignment: their sequence, and since when.
    reports: HashMap<String, (u64, Instant)>,
    heartbeats: u64,
    /// Only there until it is over.
    asks: JoinSet<fluvial_proto::v1::AskReply>,
}

/// Holds a session until it ends.
pub(super) async fn hold(uplink: &mut Uplink, address: &str) -> Result<Ended, Lost> {
    let cancel = uplink.cancel.clone();
    let (out, queue) = mpsc::channel(OUTBOUND);
    let opening = async {
        let channel = match uplink.agent.node {
            None => connect::connect(address, uplink.credentials.client_config()).await,
            Some(_) => {
                let member = Identity::Cluster { name: uplink.agent.cluster.clone() };
                uplink.dialler.channel(address, &member)
            }
        };
        let channel = channel.map_err(Lost::Connect)?;
        let known = uplink.ledger.call(|ledger| Ok((ledger.position()?, ledger.newest_epoch()?))).await;
        let (position, newest_epoch) = known.map_err(Lost::Ledger)?;
        let agent_report = profile(&uplink.profile.borrow_and_update());
        let hello = Hello { epoch: position.epoch, cursor: position.cursor, agent_report, newest_epoch };
        out.try_send(said(Said::Hello(hello))).map_err(|_| Lost::Stuck)?;
        let mut client = AgentServiceClient::new(channel.clone());
        let open = Box::pin(client.session(ReceiverStream::new(queue)));
        let opened = tokio::time::timeout(OPENING, open).await.map_err(|_| Lost::Silent(OPENING))?;
        Ok::<_, Lost>((channel, opened.map_err(|status| Lost::Refused(Box::new(status)))?.into_inner()))
    };
    let (channel, heard) = tokio::select! {
        biased;
        () = cancel.cancelled() => return Ok(Ended::Stop),
        opened = opening => opened?,
    };
    let session = Session {
        uplink,
        address,
        out,
        welcomed: None,
        mentioned: None,
        same_history: true,
        keeping: false,
        reports: HashMap::new(),
        heartbeats: 0,
        asks: JoinSet::new(),
    };
    session.run(channel, heard).await
}

/// Whether `held` stays as it is although a hub that has not caught up wants something else in its place.
fn keeps(held: &Assignment, offered: &Assignment) -> bool {
    !held.withdrawn && held.work != offered.work && matches!(held.work, Work::Cache(_) | Work::Mount(_))
}

fn said(message: Said) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

fn profile(report: &AgentReport) -> bytes::Bytes {
    serde_json::to_vec(report).expect("texts and numbers can be written as JSON").into()
}

impl Session<'_> {
    async fn run(mut self, channel: Channel, mut heard: Streaming<HubMessage>) -> Result<Ended, Lost> {
        let cancel = self.uplink.cancel.clone();
        let mut news = self.uplink.ledger.news();
        let mut profiles = self.uplink.profile.clone();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence = tokio::time::sleep(SILENCE);
        tokio::pin!(silence);
        // Drawn once for this session: each certificate gets a session of its own.
        let jitter = rand::random();
        let (renewal, mut renew_again) = self.renewal(jitter);
        tokio::pin!(renewal);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(Ended::Stop),
                message = heard.message() => {
                    silence.as_mut().reset(Instant::now() + SILENCE);
                    let message = message.map_err(|status| Lost::Refused(Box::new(status)))?.ok_or(Lost::Closed)?;
                    if let Some(ended) = self.hear(message, &channel).await? {
                        return Ok(ended);
                    }
                }
                () = &mut silence => return Err(Lost::Silent(SILENCE)),
                Some(answer) = self.asks.join_next() => {
                    if let Ok(answer) = answer {
                        self.say(Said::Reply(answer)).await?;
                    }
                }
                _ = beat.tick() => {
                    self.heartbeats += 1;
                    self.say(Said::Heartbeat(Heartbeat { sequence: self.heartbeats })).await?;
                    self.send_reports().await?;
                }
                Ok(()) = news.changed() => {
                    news.borrow_and_update();
                    self.send_reports().await?;
                }
                Ok(()) = profiles.changed() => {
                    let report = profile(&profiles.borrow_and_update());
                    self.say(Said::AgentReport(report)).await?;
                }
                () = &mut renewal, if self.welcomed.is_some() => {
                    let hub = self.uplink.agent.node.is_none().then(|| channel.clone());
                    match renew::renew(self.uplink, hub).await {
                        Ok(()) => return Ok(Ended::Renewed),
                        Err(error) => {
                            tracing::warn!(error = &error as &dyn std::error::Error, "trying again in {renew_again:?}");
                            renewal.as_mut().reset(Instant::now() + renew_again);
                            renew_again = self.renewal(jitter).1;
                        }
                    }
                }
            }
        }
    }

    /// When to renew, and how long to wait after a failure.
    fn renewal(&self, jitter: f64) -> (Sleep, Duration) {
        let (wait, again) = renew::schedule(self.uplink, jitter).unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the certificate in force cannot be read");
            (Duration::ZERO, Duration::from_secs(60))
        });
        (tokio::time::sleep(wait), again)
    }

    async fn say(&self, message: Said) -> Result<(), Lost> {
        let sent = tokio::time::timeout(SILENCE, self.out.send(said(message))).await;
        sent.map_err(|_| Lost::Stuck)?.map_err(|_| Lost::Closed)
    }

    async fn hear(&mut self, message: HubMessage, channel: &Channel) -> Result<Option<Ended>, Lost> {
        let welcomed = self.welcomed.is_some();
        match message.message {
            Some(Heard::Welcome(welcome)) if !welcomed => self.welcome(welcome, channel).await?,
            Some(Heard::Welcome(_)) => return Err(Lost::Protocol("the hub welcomed this agent twice")),
            Some(Heard::MoveAfterMs(wait)) => return Ok(Some(Ended::Move(Duration::from_millis(wait)))),
            Some(Heard::Heartbeat(_)) => {}
            Some(Heard::Denied(denied)) => {
                let denials = self.uplink.denied.clone();
                tokio::task::spawn_blocking(move || denials.add(&denied)).await.map_err(|_| Lost::Closed)?;
            }
            Some(Heard::Nodes(nodes)) => match serde_json::from_slice::<Vec<Node>>(&nodes) {
                // Only a node is told by others which nodes there are.
                Ok(nodes) if self.uplink.agent.node.is_some() => {
                    self.uplink.sharing.send_if_modified(|known| {
                        let changed = *known != nodes;
                        *known = nodes;
                        changed
                    });
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the list of nodes cannot be read"),
            },
            // Of a newer hub.
            None => {}
            Some(_) if !welcomed => return Err(Lost::Protocol("the hub did not begin with a welcome")),
            Some(Heard::Assign(assign)) => self.assign(assign).await?,
            // What goes, goes when the hub has caught up.
            Some(Heard::Withdraw(withdraw)) if self.keeping => {
                self.acknowledge(withdraw.id, withdraw.generation, KEPT.to_owned()).await?;
            }
            Some(Heard::Withdraw(withdraw)) => {
                if let Some(mentioned) = &mut self.mentioned {
                    mentioned.remove(&withdraw.id);
                }
                let (id, generation) = (withdraw.id.clone(), withdraw.generation);
                self.ledger(move |ledger| ledger.withdraw(&id, generation)).await?;
                self.acknowledge(withdraw.id, withdraw.generation, String::new()).await?;
            }
            Some(Heard::Rates(rates)) => self.uplink.rates.hear(rates),
            Some(Heard::Synced(synced)) => self.synced(synced.revision).await?,
            Some(Heard::Ask(question)) if self.asks.len() >= ASKS => {
                self.say(Said::Reply(ask::busy(&question))).await?
            }
            Some(Heard::Ask(question)) => {
                let process = self.uplink.profile.borrow().process.clone();
                self.asks.spawn(ask::answer(question, process.into()));
            }
            Some(Heard::ReportStored(stored)) => {
                if let Some((sequence, _)) = self.reports.remove(&stored.id) {
                    let Ack { id, generation, .. } = stored;
                    self.ledger(move |ledger| ledger.stored(&id, generation, sequence)).await?;
                }
                self.send_reports().await?;
            }
        }
        Ok(None)
    }

    async fn ledger<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Ledger) -> Result<T, crate::ledger::Error> + Send + 'static,
    ) -> Result<T, Lost> {
        self.uplink.ledger.call(call).await.map_err(Lost::Ledger)
    }

    async fn welcome(&mut self, welcome: Welcome, channel: &Channel) -> Result<(), Lost> {
        let epoch = welcome.epoch;
        let (position, newest) = self.ledger(move |ledger| Ok((ledger.position()?, ledger.met(epoch)?))).await?;
        if epoch < newest {
            return Err(Lost::Protocol("the hub belongs to hubs that were replaced by a restore"));
        }
        self.same_history = epoch == position.epoch;
        self.keeping = welcome.recovering && !self.same_history;
        if !self.same_history && !welcome.full {
            return Err(Lost::Protocol("the hub has another history and does not send all of it"));
        }
        if welcome.full {
            self.mentioned = Some(HashSet::new());
            // A hub that does not know where this agent stands may not know what it said either.
            self.ledger(|ledger| ledger.say_again()).await?;
        }
        self.learn_hubs(&welcome.hubs);
        self.welcomed = Some(welcome);
        self.uplink.channel.send_replace(Some(channel.clone()));
        tracing::info!(hub = self.address, "session with the hub");
        if self.keeping {
            tracing::warn!(
                hub = self.address,
                "the hub was restored: until it has caught up, caches and mounts stay as they are"
            );
        }
        self.uplink.state.send_replace(UplinkState::Connected { hub: self.address.to_owned() });
        self.send_reports().await
    }

    /// Remembers where hubs are; a list that cannot be written is known until the agent ends.
    fn learn_hubs(&mut self, hubs: &[String]) {
        let good: Vec<String> = hubs.iter().filter_map(|hub| connect::address(hub).ok()).collect();
        if good.is_empty() || good == self.uplink.agent.hubs {
            return;
        }
        self.uplink.agent.hubs = good;
        if let Err(error) = self.uplink.dir.set_agent(&self.uplink.agent) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the list of hubs could not be written");
        }
    }

    async fn assign(&mut self, assign: Assign) -> Result<(), Lost> {
        let Assign { id, generation, work, secrets } = assign;
        if let Some(mentioned) = &mut self.mentioned {
            // Also what is refused is wanted: it must not be withdrawn for that.
            mentioned.insert(id.clone());
        }
        let work = match serde_json::from_slice::<Work>(&work) {
            Ok(work) if work.id() == id => work,
            Ok(work) => {
                return self.acknowledge(id, generation, format!("the work's id is \"{}\"", work.id())).await;
            }
            Err(error) => {
                return self
                    .acknowledge(id, generation, format!("this agent does not understand the work: {error}"))
                    .await;
            }
        };
        let secrets = Secrets(secrets.into_iter().collect());
        let offered = Assignment { id: id.clone(), generation, work, secrets, withdrawn: false };
        if self.keeping {
            let of = id.clone();
            let held = self.ledger(move |ledger| ledger.assignment(&of)).await?;
            if held.is_some_and(|held| keeps(&held, &offered)) {
                return self.acknowledge(id, generation, KEPT.to_owned()).await;
            }
        }
        let same_history = self.same_history;
        let accepted = self.ledger(move |ledger| ledger.assign(&offered, same_history)).await?;
        let refused = match accepted {
            Acceptance::Accept | Acceptance::Duplicate => String::new(),
            Acceptance::Stale => "a later generation is known".to_owned(),
            Acceptance::Contradiction => {
                tracing::error!(id, generation, "the hub sent other content with a known generation; it is refused");
                "this generation is known with other content".to_owned()
            }
        };
        self.acknowledge(id, generation, refused).await
    }

    async fn acknowledge(&self, id: String, generation: u64, refused: String) -> Result<(), Lost> {
        self.say(Said::Ack(Ack { id, generation, refused })).await
    }

    async fn synced(&mut self, revision: u64) -> Result<(), Lost> {
        if self.keeping {
            // Not noted: the next welcome sends everything once more, and what it does not mention goes then.
            return Ok(());
        }
        let epoch = self.welcomed.as_ref().map_or(0, |welcome| welcome.epoch);
        let mentioned = self.mentioned.take();
        let position = Position { epoch, cursor: revision };
        self.ledger(move |ledger| ledger.synced(position, mentioned.as_ref())).await?;
        self.same_history = true;
        Ok(())
    }

    /// Sends what is to be said and not on its way.
    async fn send_reports(&mut self) -> Result<(), Lost> {
        if self.welcomed.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        self.reports.retain(|_, (_, since)| now.duration_since(*since) < REPORT_AGAIN);
        let busy: HashSet<String> = self.reports.keys().cloned().collect();
        let room = REPORTS.saturating_sub(busy.len());
        if room == 0 {
            return Ok(());
        }
        for unsent in self.ledger(move |ledger| ledger.unsent(room, &busy)).await? {
            let (id, generation) = (unsent.id.clone(), unsent.generation);
            self.reports.insert(unsent.id, (unsent.sequence, now));
            self.say(Said::Report(WorkReport { id, generation, report: unsent.report.into() })).await?;
        }
        Ok(())
    }
}
