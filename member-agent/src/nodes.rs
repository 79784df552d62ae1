//! ④⑦ The other machines of this agent's cluster: each runs an agent of its own, which takes its orders from this one.
//!
//! To a node this agent is what a hub is to it: the same session, the same ledger, the same work. A node is given the
//! cluster's caches and the mounts on its own machine, the list of nodes that share their caches, and who is denied; what
//! it says of a cache becomes part of what the cluster says of it ([`merge`]).
//!
//! Invariants: only a node of this cluster is told anything, by its certificate; one process at a time is one node; what
//! a node said is forgotten with its session, and said again in the next. Deliberately absent: keeping what nodes say on
//! disk (a node repeats it), and deciding what a node should hold.

mod session;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fluvial_model::kinds::NodeUsage;
use fluvial_model::report::{AgentReport, CacheReport, Report, StoredReport, merge};
use fluvial_model::share::Node;
use fluvial_transfer::BlockStore;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blocks::HubLink;
use crate::denied::Denials;
use crate::ledger::{self, Ledger};

/// What is known of one node while it has a session.
struct Known {
    session: u64,
    report: AgentReport,
    /// By assignment.
    reports: HashMap<String, StoredReport>,
}

/// The nodes. Clones are one.
#[derive(Clone)]
pub struct Nodes {
    shared: Arc<Shared>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("cluster", &self.shared.cluster).finish_non_exhaustive()
    }
}

struct Shared {
    cluster: String,
    /// This machine, as one of the nodes that share; nothing if it listens nowhere.
    own: Mutex<Option<Node>>,
    table: Mutex<Table>,
    /// Changes with everything that a node says, and when one comes or goes.
    changed: watch::Sender<u64>,
    /// The nodes that share their caches, this one among them.
    sharing: watch::Sender<Vec<Node>>,
    ledger: Ledger,
    blocks: BlockStore,
    link: HubLink,
    denied: Denials,
    tasks: TaskTracker,
    ending: CancellationToken,
}

#[derive(Default)]
struct Table {
    sessions: u64,
    nodes: BTreeMap<String, Known>,
    /// What this machine itself says of the cluster's caches, by assignment, with its generation.
    own: HashMap<String, (u64, CacheReport)>,
}

impl Nodes {
    /// No nodes yet. `sharing` is told which nodes share.
    #[must_use]
    pub fn new(
        cluster: &str,
        ledger: Ledger,
        blocks: BlockStore,
        link: HubLink,
        denied: Denials,
        sharing: watch::Sender<Vec<Node>>,
    ) -> Self {
        let shared = Shared {
            cluster: cluster.to_owned(),
            own: Mutex::default(),
            table: Mutex::default(),
            changed: watch::Sender::new(0),
            sharing,
            ledger,
            blocks,
            link,
            denied,
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what this machine is among those that share.
    pub fn set_own(&self, own: Option<Node>) {
        *self.shared.own.lock().unwrap_or_else(PoisonError::into_inner) = own;
        self.share();
    }

    /// Changes with everything that a node says, and when one comes or goes.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Room and use of every node that has a session.
    #[must_use]
    pub fn usage(&self) -> Vec<NodeUsage> {
        self.table().nodes.values().flat_map(|known| known.report.nodes.clone()).collect()
    }

    /// What a node says of an assignment at this generation; nothing if it has no session, or says nothing yet.
    #[must_use]
    pub fn said(&self, node: &str, id: &str, generation: u64) -> Option<Report> {
        let table = self.table();
        let stored = table.nodes.get(node)?.reports.get(id)?;
        (stored.generation == generation).then(|| stored.report.clone())
    }

    /// Whether a node has a session.
    #[must_use]
    pub fn is_here(&self, node: &str) -> bool {
        self.table().nodes.contains_key(node)
    }

    /// What the cluster says, when this machine says `own`.
    #[must_use]
    pub fn merged(&self, id: &str, generation: u64, own: Report) -> Report {
        let Report::Cache(own) = own else { return own };
        let mut table = self.table();
        table.own.insert(id.to_owned(), (generation, own.clone()));
        Report::Cache(table.merge(id, own))
    }

    /// Forgets an assignment.
    pub fn forget(&self, id: &str) {
        self.table().own.remove(id);
    }

    /// Ends every session and waits for that.
    pub async fn shutdown(&self) {
        self.shared.ending.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// A node has said something of these assignments, or is gone: the cluster says so.
    async fn retell(&self, ids: Vec<String>) -> Result<(), ledger::Error> {
        self.shared.changed.send_modify(|changes| *changes += 1);
        let nodes = self.clone();
        let retell = move |ledger: &Ledger| {
            for id in ids {
                let merged = {
                    let table = nodes.table();
                    let own = table.own.get(&id).cloned();
                    own.map(|(generation, own)| (generation, Report::Cache(table.merge(&id, own))))
                };
                if let Some((generation, report)) = merged {
                    ledger.report(&id, generation, &report)?;
                }
            }
            Ok(())
        };
        self.shared.ledger.call(retell).await
    }

    /// Tells everybody which nodes share, if that changed.
    fn share(&self) {
        let own = self.shared.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let node = |(name, known): (&String, &Known)| {
            let media = known.report.nodes.iter().flat_map(|node| &node.media);
            let capacity_bytes = media.map(|medium| medium.capacity_bytes).fold(0, u64::saturating_add);
            let address = known.report.address.clone();
            (!address.is_empty()).then(|| Node { name: name.clone(), address, capacity_bytes, leads: false })
        };
        let sharing: Vec<Node> = own.into_iter().chain(self.table().nodes.iter().filter_map(node)).collect();
        self.shared.sharing.send_if_modified(|known| {
            let changed = *known != sharing;
            *known = sharing;
            changed
        });
    }
}

impl Table {
    fn merge(&self, id: &str, own: CacheReport) -> CacheReport {
        let others = self.nodes.values().filter_map(|known| match &known.reports.get(id)?.report {
            Report::Cache(report) => Some(report),
            _ => None,
        });
        merge(own, others)
    }
}
