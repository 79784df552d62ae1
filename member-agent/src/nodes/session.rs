//! One session with one node, from its hello to its end.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use fluvial_certs::Identity;
use fluvial_certs::listen::Peer;
use fluvial_model::desired::Work;
use fluvial_model::liveness::UNREACHABLE_AFTER;
use fluvial_model::manifest::BlockHash;
use fluvial_model::report::{AgentReport, StoredReport};
use fluvial_proto::v1;
use fluvial_proto::v1::agent_message::Message as Said;
use fluvial_proto::v1::agent_service_server::AgentService;
use fluvial_proto::v1::hub_message::Message as Told;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Known, Nodes};
use crate::blocks;
use crate::ledger::{Assignment, Secrets};

/// Messages that are ready for one node.
const OUTBOUND: usize = 16;
/// A node says hello first, and soon.
const HELLO: Duration = Duration::from_secs(10);
/// A node that does not take a message for so long is gone.
const STUCK: Duration = Duration::from_secs(15);

/// The node of this cluster that calls.
fn caller<T>(cluster: &str, request: &Request<T>) -> Result<String, Status> {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.verified.as_ref());
    match peer.map(|verified| &verified.identity) {
        Some(Identity::Node { cluster: theirs, name }) if theirs == cluster => Ok(name.clone()),
        _ => Err(Status::permission_denied(format!("only a node of cluster \"{cluster}\" may call this"))),
    }
}

fn refused(error: &crate::ledger::Error) -> Status {
    tracing::error!(error = error as &dyn std::error::Error, "a node could not be told what to do");
    Status::unavailable("the cluster's agent cannot use its ledger: try again")
}

#[tonic::async_trait]
impl AgentService for Nodes {
    type SessionStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.shared.ending.is_cancelled() {
            return Err(Status::unavailable("the cluster's agent is ending"));
        }
        let node = caller(&self.shared.cluster, &request)?;
        let (out, messages) = mpsc::channel(OUTBOUND);
        let session = Session { nodes: self.clone(), node, out, sent: HashMap::new(), number: 0 };
        self.shared.tasks.spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unimplemented("a node gets its certificate from a hub"))
    }

    async fn put_blocks(&self, _: Request<Streaming<v1::Block>>) -> Result<Response<v1::PutBlocksResponse>, Status> {
        Err(Status::unimplemented("a node makes no versions"))
    }

    async fn get_block(&self, request: Request<v1::BlockRequest>) -> Result<Response<v1::Block>, Status> {
        caller(&self.shared.cluster, &request)?;
        let hash: [u8; 32] = request.get_ref().hash[..]
            .try_into()
            .map_err(|_| Status::invalid_argument("a block's name must be 32 bytes"))?;
        let hash = BlockHash::from_bytes(hash);
        let data = blocks::fetch(&self.shared.link, &self.shared.blocks, hash).await;
        let data = data.map_err(|error| Status::unavailable(fluvial_model::causes::chain(&error)))?;
        Ok(Response::new(v1::Block { hash: Bytes::copy_from_slice(hash.as_bytes()), data }))
    }
}

struct Session {
    nodes: Nodes,
    node: String,
    out: mpsc::Sender<Result<v1::HubMessage, Status>>,
    /// What the node was told: the generation and the secrets of each assignment.
    sent: HashMap<String, (u64, Secrets)>,
    number: u64,
}

impl Session {
    async fn run(mut self, inbound: Streaming<v1::AgentMessage>) {
        let ended = Box::pin(self.serve(inbound)).await;
        if let Err(status) = ended {
            tracing::info!(node = self.node, why = status.message(), "session with a node ends");
            // If it does not leave in time, the end of the stream says enough.
            let _ = self.out.send_timeout(Err(status), Duration::from_secs(1)).await;
        }
        self.leave().await;
    }

    async fn serve(&mut self, mut inbound: Streaming<v1::AgentMessage>) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO, inbound.message()).await;
        let Ok(Ok(Some(v1::AgentMessage { message: Some(Said::Hello(hello)) }))) = first else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let report = read_report(&hello.agent_report)?;
        let shared = self.nodes.shared.clone();
        self.enter(report)?;
        let mut changes = shared.ledger.changes();
        let mut sharing = shared.sharing.subscribe();
        let mut denied = shared.denied.changed();
        sharing.mark_changed();
        denied.mark_changed();
        let position = shared.ledger.call(|ledger| ledger.position()).await.map_err(|error| refused(&error))?;
        // A node compares generations only within one history: this is the hub's.
        self.tell(Told::Welcome(v1::Welcome {
            epoch: position.epoch,
            full: true,
            hubs: Vec::new(),
            recovering: false,
        }))
        .await?;
        tracing::info!(node = self.node, "session with a node");
        self.assign().await?;
        self.tell(Told::Synced(v1::Synced { revision: position.cursor })).await?;
        let silence = tokio::time::sleep(UNREACHABLE_AFTER);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                () = shared.ending.cancelled() => return Err(Status::unavailable("the cluster's agent is ending")),
                said = inbound.message() => {
                    let Ok(Some(said)) = said else { return Ok(()) };
                    silence.as_mut().reset(Instant::now() + UNREACHABLE_AFTER);
                    if let Some(said) = said.message {
                        self.hear(said).await?;
                    }
                }
                () = &mut silence => return Err(Status::deadline_exceeded("the node fell silent")),
                Ok(()) = changes.changed() => {
                    self.assign().await?;
                }
                Ok(()) = sharing.changed() => {
                    let nodes = serde_json::to_vec(&*sharing.borrow_and_update());
                    let nodes = nodes.map_err(|error| Status::internal(error.to_string()))?;
                    self.tell(Told::Nodes(nodes.into())).await?;
                }
                Ok(()) = denied.changed() => {
                    self.tell(Told::Denied(shared.denied.told())).await?;
                }
            }
        }
    }

    /// Takes the node's place, unless another machine with its name has it.
    fn enter(&mut self, report: AgentReport) -> Result<(), Status> {
        let mut table = self.nodes.table();
        if table.nodes.get(&self.node).is_some_and(|known| known.report.instance != report.instance) {
            return Err(Status::already_exists(format!(
                "another machine is node \"{}\" of this cluster: give each node a name of its own",
                self.node
            )));
        }
        table.sessions += 1;
        self.number = table.sessions;
        let known = Known { session: self.number, report, reports: HashMap::new() };
        table.nodes.insert(self.node.clone(), known);
        drop(table);
        self.nodes.share();
        self.nodes.shared.changed.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Gives the place up, if a later session of the node has not taken it.
    async fn leave(&self) {
        let said = {
            let mut table = self.nodes.table();
            if table.nodes.get(&self.node).is_none_or(|known| known.session != self.number) {
                return;
            }
            table.nodes.remove(&self.node).map(|known| known.reports.into_keys().collect::<Vec<_>>())
        };
        self.nodes.share();
        if let Err(error) = self.nodes.retell(said.unwrap_or_default()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "that a node is gone could not be noted");
        }
    }

    async fn tell(&self, message: Told) -> Result<(), Status> {
        let message = Ok(v1::HubMessage { message: Some(message) });
        self.out.send_timeout(message, STUCK).await.map_err(|_| Status::deadline_exceeded("the node takes no messages"))
    }

    /// Tells the node what is new among its assignments.
    async fn assign(&mut self) -> Result<(), Status> {
        let all = self.nodes.shared.ledger.call(|ledger| ledger.assignments()).await;
        let all = all.map_err(|error| refused(&error))?;
        let wanted: BTreeMap<String, Assignment> = all
            .into_iter()
            .filter(|assignment| !assignment.withdrawn && concerns(&assignment.work, &self.node))
            .map(|assignment| (assignment.id.clone(), assignment))
            .collect();
        let gone: Vec<(String, u64)> = self
            .sent
            .iter()
            .filter(|(id, _)| !wanted.contains_key(*id))
            .map(|(id, (generation, _))| (id.clone(), *generation))
            .collect();
        for (id, generation) in gone {
            self.sent.remove(&id);
            self.tell(Told::Withdraw(v1::Withdraw { id, generation })).await?;
        }
        for (id, Assignment { generation, work, secrets, .. }) in wanted {
            if self.sent.get(&id).is_some_and(|sent| *sent == (generation, secrets.clone())) {
                continue;
            }
            let work = serde_json::to_vec(&work).map_err(|error| Status::internal(error.to_string()))?;
            self.sent.insert(id.clone(), (generation, secrets.clone()));
            let secrets = secrets.0.into_iter().collect();
            self.tell(Told::Assign(v1::Assign { id, generation, work: work.into(), secrets })).await?;
        }
        Ok(())
    }

    async fn hear(&self, said: Said) -> Result<(), Status> {
        match said {
            Said::Heartbeat(heartbeat) => self.tell(Told::Heartbeat(heartbeat)).await?,
            Said::AgentReport(report) => {
                let report = read_report(&report)?;
                if let Some(known) = self.nodes.table().nodes.get_mut(&self.node) {
                    known.report = report;
                }
                self.nodes.share();
                self.nodes.shared.changed.send_modify(|changes| *changes += 1);
            }
            Said::Report(v1::WorkReport { id, generation, report }) => {
                let report = serde_json::from_slice(&report)
                    .map_err(|error| Status::invalid_argument(format!("a report cannot be read: {error}")))?;
                if let Some(known) = self.nodes.table().nodes.get_mut(&self.node) {
                    known.reports.insert(id.clone(), StoredReport { generation, report });
                }
                self.nodes.retell(vec![id.clone()]).await.map_err(|error| refused(&error))?;
                let stored = v1::Ack { id, generation, refused: String::new() };
                self.tell(Told::ReportStored(stored)).await?;
            }
            Said::Ack(ack) if !ack.refused.is_empty() => {
                tracing::warn!(node = self.node, id = ack.id, why = ack.refused, "a node refused an assignment");
            }
            Said::Ack(_) | Said::Reply(_) => {}
            Said::Hello(_) => return Err(Status::invalid_argument("a second hello")),
        }
        Ok(())
    }
}

fn read_report(json: &[u8]) -> Result<AgentReport, Status> {
    serde_json::from_slice(json)
        .map_err(|error| Status::invalid_argument(format!("the node's report cannot be read: {error}")))
}

/// Whether a node has a part in the work.
fn concerns(work: &Work, node: &str) -> bool {
    match work {
        Work::Cache(_) => true,
        Work::Mount(mount) => mount.node == node,
        Work::Scan(_)
        | Work::Migrate(_)
        | Work::Remove(_)
        | Work::Serve(_)
        | Work::Load(_)
        | Work::Backup(_)
        | Work::Restore(_)
        | Work::Repository(_) => false,
    }
}
