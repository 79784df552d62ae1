//! A simulated machine: one runtime on which one node runs, and which ends without notice.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fluvial_raft::{Config, RaftStore, peer_service};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;

use crate::network::{Connector, Network, Unkind};

/// Who was owed more time than this has slept; a fast clock owes less.
const AWAKE: u64 = 10;

/// What became of the start of a node.
type Started = Arc<Mutex<Option<Result<RaftStore, String>>>>;

/// A node that has power.
pub struct Running {
    runtime: Runtime,
    started: Started,
    /// Whether clients know of it.
    pub seated: bool,
}

/// A machine of the simulation.
pub struct Host {
    pub id: u64,
    pub dir: PathBuf,
    boots: u64,
    pub running: Option<Running>,
    /// It sleeps until this tick.
    pub asleep_until: u64,
    /// Time that has passed and that it has not lived through, in thousandths of a tick.
    owed: u64,
    /// How fast its clock runs, in thousandths.
    clock: u64,
    /// Its disk was made to fail since its start: whatever it says now is no surprise.
    pub hurt: bool,
    /// It left the cluster and never comes back.
    pub gone: bool,
}

impl Host {
    #[must_use]
    pub fn new(id: u64, root: &Path, clock: u64) -> Self {
        let dir = root.join(format!("{id}-0"));
        std::fs::create_dir_all(&dir).expect("a directory for a node");
        Self { id, dir, boots: 0, running: None, asleep_until: 0, owed: 0, clock, hurt: false, gone: false }
    }

    /// The directory that what is left of the current one goes to.
    #[must_use]
    pub fn next_dir(&mut self, root: &Path) -> PathBuf {
        self.boots += 1;
        root.join(format!("{}-{}", self.id, self.boots))
    }

    /// Starts the node; it opens its files as time goes on.
    pub fn start(&mut self, config: Config, network: &Network) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let started = Started::default();
        network.power_on(self.id);
        let (tell, network, id) = (Arc::clone(&started), network.clone(), self.id);
        runtime.spawn(async move {
            let connector = Connector { network: network.clone(), from: id };
            let opened = RaftStore::open(config, Arc::new(connector)).await;
            let service = opened.as_ref().ok().map(peer_service);
            let opened = opened.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
            *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            let Some(service) = service else { return };
            let service = Unkind { service, network: network.clone() };
            // It ends with the runtime.
            let _ = Server::builder()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20)
                .add_service(service)
                .serve_with_incoming(network.accept(id))
                .await;
        });
        (self.running, self.hurt) = (Some(Running { runtime, started, seated: false }), false);
    }

    /// Lets the node live through one more tick, and through those that it slept.
    pub fn live(&mut self, now: u64) {
        self.owed += self.clock;
        let Some(running) = &self.running else {
            self.owed = 0;
            return;
        };
        if now < self.asleep_until {
            return;
        }
        let whole = self.owed / 1000;
        self.owed %= 1000;
        running.runtime.block_on(async {
            // Who slept wakes up in another time, at once.
            if whole > AWAKE {
                tokio::time::advance(Duration::from_millis(whole - 1)).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            } else if whole > 0 {
                tokio::time::sleep(Duration::from_millis(whole)).await;
            }
        });
    }

    /// The node's store, once it has started; or why it could not.
    #[must_use]
    pub fn store(&self) -> Option<Result<RaftStore, String>> {
        let running = self.running.as_ref()?;
        running.started.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn handle(&self) -> Option<tokio::runtime::Handle> {
        self.running.as_ref().map(|running| running.runtime.handle().clone())
    }
}
