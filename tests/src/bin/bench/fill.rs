//! Fills the store of a hub with datasets that are cached, as if they had been planned and loaded one by one.
//!
//! It is the hub's own store on the hub's own folder: transactions through its Raft node, each with some hundred writes,
//! by as many at a time as share a sync. What is written is what the planner decides for such a dataset
//! (`fluvial_model::upkeep`), so that a hub that starts on it finds nothing to do. The hub itself does not plan meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fluvial_hub::run::{Hub, HubConfig, RunningHub};
use fluvial_model::desired::assignment_key;
use fluvial_model::kinds::placement::{ClusterChoice, DatasetChoice};
use fluvial_model::kinds::{
    Cluster, ClusterSpec, ClusterState, ClusterStatus, Dataset, DatasetSpec, Placement, PlacementSpec,
};
use fluvial_model::placement::{Decision, place};
use fluvial_model::report::{CacheReport, Report, ScanReport, StoredReport, Totals, Version, report_key};
use fluvial_model::resource::Resource;
use fluvial_model::selector::LabelSelector;
use fluvial_model::store::{Compare, Op, Txn};
use fluvial_model::upkeep::{Facts, plan};
use fluvial_raft::Store as _;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

/// Clusters, each with a Placement of its own.
pub(crate) const CLUSTERS: usize = 50;
/// Datasets in one transaction, with four objects each.
const DATASETS_EACH: usize = 100;
/// Transactions under way.
const AT_ONCE: usize = 8;
const LABEL: &str = "placed-by";

/// What to fill.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder of a hub that does not run.
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    datasets: usize,
}

/// The name of a dataset.
pub(crate) fn name(number: usize) -> String {
    format!("d-{number:07}")
}

struct Filler {
    hub: RunningHub,
    clusters: BTreeMap<String, Cluster>,
    placements: Vec<(Placement, Decision)>,
    now: Timestamp,
}

/// Fills, and ends the hub.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let mut config = HubConfig::new(&arguments.data_dir);
    config.plans = false;
    let hub = Hub::start(config).await?;
    ensure!(hub.ready(Duration::from_secs(60)).await, "the hub does not answer");
    let mut filler = Filler { hub, clusters: BTreeMap::new(), placements: Vec::new(), now: Timestamp::now() };
    filler.surroundings().await?;
    let starts: Vec<usize> = (0..arguments.datasets).step_by(DATASETS_EACH).collect();
    let filler_ref = &filler;
    let batches = starts.into_iter().map(|from| async move {
        let txn = filler_ref.batch(from..(from + DATASETS_EACH).min(arguments.datasets))?;
        filler_ref.hub.store().txn(txn).await?;
        if from % 100_000 == 0 {
            eprintln!("filling: {from} of {}", arguments.datasets);
        }
        Ok::<_, anyhow::Error>(())
    });
    futures::stream::iter(batches).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    filler.hub.shutdown().await;
    Ok(())
}

impl Filler {
    fn put(&self, txn: &mut Txn, object: &impl Resource) -> Result<()> {
        let key = object.key();
        txn.compares.push(Compare::Absent { key: key.clone() });
        txn.ops.push(Op::Put { key, value: self.hub.objects().encode(object)? });
        Ok(())
    }

    /// Clusters that were there once, and Placements that chose them: as long as nobody speaks for them, nothing moves.
    async fn surroundings(&mut self) -> Result<()> {
        let mut txn = Txn::default();
        for number in 0..CLUSTERS {
            let name = format!("c-{number:02}");
            let mut cluster = Cluster::new("", &name, ClusterSpec::default());
            made(&mut cluster, self.now);
            cluster.status = Some(ClusterStatus { state: ClusterState::Unreachable, ..ClusterStatus::default() });
            self.put(&mut txn, &cluster)?;
            let selector = LabelSelector::parse(&format!("{LABEL}={name}")).map_err(anyhow::Error::msg)?;
            let spec = PlacementSpec {
                datasets: DatasetChoice { selector: Some(selector), ..DatasetChoice::default() },
                clusters: ClusterChoice { names: vec![name.clone()], ..ClusterChoice::default() },
                ..PlacementSpec::default()
            };
            let mut placement = Placement::new("default", &name, spec);
            made(&mut placement, self.now);
            let decision = place(&placement.spec.clusters, [&cluster], std::slice::from_ref(&name), None);
            placement.status = Some(fluvial_model::kinds::PlacementStatus {
                observed_generation: 1,
                clusters: decision.clusters.clone(),
                ..Default::default()
            });
            self.put(&mut txn, &placement)?;
            self.clusters.insert(name, cluster);
            self.placements.push((placement, decision));
        }
        self.hub.store().txn(txn).await?;
        Ok(())
    }

    /// Datasets with everything that belongs to them.
    fn batch(&self, numbers: std::ops::Range<usize>) -> Result<Txn> {
        let mut txn = Txn::default();
        for number in numbers {
            let (placement, decision) = &self.placements[number % CLUSTERS];
            let cluster = &placement.metadata.name;
            let mount = serde_json::json!({ "mountPoint": format!("s3://bucket-{}/{}", number % 97, name(number)) });
            let spec: DatasetSpec = serde_json::from_value(serde_json::json!({ "mounts": [mount] }))?;
            let mut dataset = Dataset::new("default", &name(number), spec);
            made(&mut dataset, self.now);
            dataset.metadata.uid = format!("00000000-0000-4000-8000-{number:012}");
            dataset.metadata.labels.insert(LABEL.to_owned(), cluster.clone());
            self.settle(&mut txn, dataset, (placement, decision), number)?;
        }
        Ok(txn)
    }

    /// Plans the dataset, reports what was asked for, and plans again, until there is nothing left to do.
    fn settle(
        &self,
        txn: &mut Txn,
        mut dataset: Dataset,
        placed: (&Placement, &Decision),
        number: usize,
    ) -> Result<()> {
        let bytes = u64::try_from(number % 4096).context("a number")? << 20;
        let totals = Totals { files: 1000, directories: 10, bytes };
        let version = Version { root: format!("{number:064x}"), totals, digested: true };
        // Nobody is Ready, so nobody is asked to list it: it was listed before.
        let scan = ScanReport { generation: 1, request: "/".to_owned(), found: Some(version.clone()), problem: None };
        let mut status = fluvial_model::kinds::DatasetStatus {
            root: Some(version.root.clone()),
            scanned_root: Some(version.root.clone()),
            digested: true,
            files: totals.files,
            directories: totals.directories,
            total_bytes: totals.bytes,
            observed_generation: scan.generation,
            source_cluster: Some(placed.0.metadata.name.clone()),
            scanned_time: Some(self.now),
            ..Default::default()
        };
        let (storages, placements) = (BTreeMap::new(), [placed]);
        let mut reports: BTreeMap<(String, String), StoredReport> = BTreeMap::new();
        loop {
            dataset.status = Some(status.clone());
            let next = plan(&Facts {
                dataset: &dataset,
                storages: &storages,
                clusters: &self.clusters,
                placements: &placements,
                reports: &reports,
                migrations: &[],
                mounts: &[],
                now: self.now,
            });
            let missing: Vec<_> =
                next.assignments.iter().filter(|(c, w)| !reports.contains_key(&(c.clone(), w.0.id()))).collect();
            for (cluster, work) in &missing {
                let report = Report::Cache(CacheReport {
                    phase: "Ready".to_owned(),
                    root: version.root.clone(),
                    cached_bytes: bytes,
                    total_bytes: bytes,
                    cached_files: totals.files,
                    total_files: totals.files,
                    ..CacheReport::default()
                });
                reports.insert((cluster.clone(), work.0.id()), StoredReport { generation: 1, report });
            }
            if !missing.is_empty() || next.status != status {
                status = next.status;
                continue;
            }
            self.put(txn, &dataset)?;
            for (cluster, work) in &next.assignments {
                let key = assignment_key(cluster, &work.0.id());
                txn.ops.push(Op::Put { key, value: serde_json::to_vec(&work.0)? });
            }
            for ((cluster, id), report) in &reports {
                txn.ops.push(Op::Put { key: report_key(cluster, id), value: serde_json::to_vec(report)? });
            }
            for mut location in next.cache_locations {
                made(&mut location, self.now);
                self.put(txn, &location)?;
            }
            return Ok(());
        }
    }
}

/// What the API gives an object when it is made.
fn made(object: &mut impl Resource, now: Timestamp) {
    let meta = object.meta_mut();
    meta.generation = 1;
    meta.creation_timestamp = Some(now);
    meta.uid = format!("00000000-0000-4000-9000-{:012x}", rand::random::<u32>());
}
