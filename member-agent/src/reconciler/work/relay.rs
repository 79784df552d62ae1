//! Both ends of a relay: sources that are served to another agent, and sources that are read through one.

use std::sync::Arc;

use fluvial_model::desired::{MigrateWork, Relay, ServeWork};
use fluvial_model::report::{Problem, Report, ServeReport};
use fluvial_transfer::listing::OpenMount;
use fluvial_transfer::place::Place;
use fluvial_transfer::place::readonly::ReadOnly;
use fluvial_transfer::{Location, SourceMount};

use super::super::locate;
use super::super::report::Trouble;
use super::Works;
use crate::ledger::Secrets;
use crate::relay::{RelayPlace, reverse};

impl Works {
    /// Serves sources to another agent, for as long as it is wanted.
    pub(super) async fn serve(
        &self,
        id: &str,
        generation: u64,
        work: &ServeWork,
        secrets: &Secrets,
    ) -> Result<Report, Trouble> {
        if !self.peers.front.awaited.port && work.peer_address.is_empty() {
            let message = format!(
                "serve sources: neither this agent nor that of {} listens: run one of them with --listen and --advertise",
                work.peer
            );
            return Err(Trouble::Problem(Problem { reason: "Unsupported".to_owned(), message, retrying: false }));
        }
        let mounts = locate::mounts(&work.sources, secrets)?;
        let places = mounts.iter().map(|mount| mount.location.open()).collect::<Result<_, _>>()?;
        let _served = self.peers.relays.serve(&work.operation, &work.peer, places);
        self.tell(id, generation, Report::Serve(ServeReport { problem: None })).await?;
        if !work.peer_address.is_empty() {
            let (dialler, front) = (&self.peers.dialler, &self.peers.front);
            reverse::keep_dialling(dialler, front, &work.peer, &work.peer_address, &work.operation).await;
        }
        std::future::pending().await
    }

    /// The sources of a migration, as this agent reads them: itself, or through another one.
    pub(super) fn sources(
        &self,
        work: &MigrateWork,
        secrets: &Secrets,
    ) -> Result<(Vec<SourceMount>, Vec<OpenMount>), Trouble> {
        let Some(Relay { cluster, address }) = &work.relay else {
            let mounts = locate::mounts(&work.sources, secrets)?;
            let open = |mount: &SourceMount| -> Result<OpenMount, Trouble> {
                Ok(OpenMount { path: mount.path.clone(), place: mount.location.open()? })
            };
            let open = mounts.iter().map(open).collect::<Result<_, _>>()?;
            return Ok((mounts, open));
        };
        let awaited = &self.peers.front.awaited;
        let channel = awaited.channel(&self.peers.dialler, cluster, address, &work.operation).map_err(|error| {
            let message = fluvial_model::causes::chain(&error);
            Trouble::Problem(Problem { reason: "Unreachable".to_owned(), message, retrying: true })
        })?;
        let (mut mounts, mut open) = (Vec::new(), Vec::new());
        for (number, endpoint) in (0..).zip(&work.sources) {
            let uri = endpoint.uri.to_string();
            let path =
                locate::path(&endpoint.path).map_err(|source| locate::Error::Path { uri: uri.clone(), source })?;
            let place = ReadOnly(RelayPlace::new(channel.clone(), cluster, &work.operation, number, &uri));
            let place: Arc<dyn Place> = Arc::new(place);
            open.push(OpenMount { path: path.clone(), place });
            mounts.push(SourceMount { path, location: Location::new(uri) });
        }
        Ok((mounts, open))
    }
}
