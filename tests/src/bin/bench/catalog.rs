//! The area `catalog`: a hub with as many as a million datasets, each cached somewhere, and PostgreSQL with the same tables.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use fluvial_tests::connection::{Call, Connection, Protocol};
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::figures::{Case, Report, Unit, milliseconds, percentile};
use crate::fill::name;
use crate::footprint::resident_kib;
use crate::hubs::Hubs;
use crate::postgres::Postgres;
use crate::{Size, programs};

const AREA: &str = "catalog";
const DESIGN: &str = "the design's limit";
const QUERY: &str = "/apis/fluvial.io/v1alpha1/query";
const DATASETS: &str = "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets";
/// Rows of one page when the tables are copied: what one query may answer.
const PAGE: usize = 100_000;
/// What takes longer has failed.
const LIMIT: Duration = Duration::from_secs(600);

/// What is asked for beside the size.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many datasets; 100,000 in `small`, 1,000,000 in `full`.
    datasets: Option<usize>,
}

struct Catalog<'a> {
    hubs: Hubs,
    /// Kept between questions.
    client: Option<Connection>,
    datasets: usize,
    report: &'a mut Report,
}

/// Measures the area.
pub(crate) async fn run(size: Size, arguments: Arguments, report: &mut Report) -> Result<()> {
    let datasets = arguments.datasets.unwrap_or(if size == Size::Small { 100_000 } else { 1_000_000 });
    let program = programs::fluvial()?;
    let mut hubs = Hubs::start(program, 1).await?;
    hubs.kill(0);
    fill(hubs.data_dir(0), datasets)?;
    let started = Instant::now();
    hubs.run(0);
    let mut catalog = Catalog { hubs, client: None, datasets, report };
    catalog.begin(started).await?;
    catalog.compare().await?;
    catalog.read_all().await
}

fn fill(data_dir: PathBuf, datasets: usize) -> Result<()> {
    let started = Instant::now();
    let mut fill = Command::new(std::env::current_exe()?);
    fill.args(["fill", "--datasets", &datasets.to_string(), "--data-dir"]).arg(data_dir).stdin(Stdio::null());
    ensure!(fill.status()?.success(), "the catalog could not be filled");
    eprintln!("filled in {:.0?}", started.elapsed());
    Ok(())
}

impl Catalog<'_> {
    async fn api(&self) -> Result<Connection> {
        let side = self.hubs.side().await;
        Connection::open(&side.addresses[0], &side.tls, Protocol::Http1).await
    }

    fn resident(&self) -> Result<u64> {
        resident_kib(self.hubs.process(0).context("the hub runs")?)
    }

    fn add(
        &mut self,
        case: &str,
        unit: Unit,
        ours: &[f64],
        peer: (&[f64], &str),
        bar: Option<f64>,
        note: &str,
    ) -> Result<()> {
        let note = format!("{} datasets; {note}", self.datasets);
        let case = Case { area: AREA, case: case.to_owned(), unit, ours, peer: peer.0, peer_name: peer.1, bar, note };
        self.report.add(case)
    }

    /// How soon it answers, plans, and what it holds.
    async fn begin(&mut self, started: Instant) -> Result<()> {
        self.hubs.leader().await;
        let answers = started.elapsed().as_secs_f64();
        self.add(
            "start",
            Unit::Seconds,
            &[answers],
            (&[60.0], DESIGN),
            None,
            "until the hub answers linearizable reads",
        )?;
        let planned = self.planned("first").await?;
        let all = started.elapsed().as_secs_f64();
        let note =
            format!("from the start until a new dataset is planned, after all others; its own wait {planned:.0?}");
        self.add("first-round", Unit::Seconds, &[all], (&[60.0], DESIGN), None, &note)?;
        let again = milliseconds(self.planned("second").await?);
        self.add("plan", Unit::Milliseconds, &[again], (&[2000.0], DESIGN), None, "until one more dataset is planned")?;
        let mut api = self.api().await?;
        let patch = json!({ "metadata": { "labels": { "touched": "yes" } } });
        let path = "/apis/fluvial.io/v1alpha1/clusters/c-07";
        api.succeed(call(Method::PATCH, path, "application/merge-patch+json", &patch)).await?;
        let after = milliseconds(self.planned("third").await?);
        let note = "until one more dataset is planned, after a cluster has changed that holds a fiftieth of them";
        self.add("plan-after-cluster", Unit::Milliseconds, &[after], (&[2000.0], DESIGN), None, note)?;
        let held = self.resident()? as f64 / 1024.0;
        let each = format!(
            "{:.2} KiB for each dataset with its assignment, report and location",
            held * 1024.0 / self.datasets as f64
        );
        self.add("rss", Unit::Mib, &[held], (&[held], "itself"), None, &each)
    }

    /// How long the planner takes to see a new dataset.
    async fn planned(&self, name: &str) -> Result<Duration> {
        let started = Instant::now();
        let mut api = self.api().await?;
        let dataset = json!({
            "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset",
            "metadata": { "name": name, "namespace": "default" }, "spec": { "mounts": [{ "mountPoint": "s3://bench/new" }] },
        });
        api.succeed(call(Method::POST, DATASETS, "application/json", &dataset)).await?;
        loop {
            let found =
                api.succeed(call(Method::GET, &format!("{DATASETS}/{name}"), "application/json", &Value::Null)).await?;
            let found: Value = serde_json::from_slice(&found)?;
            if found["status"]["conditions"].as_array().is_some_and(|all| !all.is_empty()) {
                return Ok(started.elapsed());
            }
            ensure!(started.elapsed() < LIMIT, "no plan within {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same questions to PostgreSQL.
    async fn compare(&mut self) -> Result<()> {
        eprintln!("copying the tables to PostgreSQL");
        let postgres = Postgres::start()?;
        for (table, column) in [("datasets", "name"), ("cache_locations", "dataset")] {
            self.copy(&postgres, table, column).await?;
        }
        let peer = format!("PostgreSQL {}", postgres.version()?);
        let last = self.datasets - 1;
        let points = [
            (
                "location",
                "select cluster, phase, cached_bytes from cache_locations where namespace = 'default' and dataset = NAME",
            ),
            ("dataset", "select phase, total_bytes, root from datasets where namespace = 'default' and name = NAME"),
            (
                "page",
                "select name, phase from datasets where namespace = 'default' and name > NAME order by name limit 50",
            ),
        ];
        let times = 1000;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..3 {
            for (what, sql) in points {
                eprintln!("indexed, {what}: round {}", round + 1);
                let script = sql.replace("NAME", "'d-' || lpad((:n)::text, 7, '0')");
                theirs.extend(postgres.bench(&format!("\\set n random(0, {last})\n{script};\n"), times)?);
                for _ in 0..times {
                    let sql = sql.replace("NAME", &format!("'{}'", name(rand::random_range(0..self.datasets))));
                    ours.push(self.ask(&sql).await?.1);
                }
            }
        }
        let note = "points by name and pages of 50, one client; ours over HTTP and TLS, each with a linearizable read first; \
                    theirs over TCP without TLS, by pgbench";
        for (case, percent, bar) in [("indexed-p99", 99, Some(1.0)), ("indexed-p50", 50, None)] {
            let (ours, theirs) = (at(&ours, percent), at(&theirs, percent));
            self.add(case, Unit::Milliseconds, &[ours], (&[theirs], &peer), bar, note)?;
            if percent == 99 {
                self.add("indexed-p99-limit", Unit::Milliseconds, &[ours], (&[20.0], DESIGN), Some(1.0), note)?;
            }
        }
        let scan = "select cluster, count(*) as n, sum(cached_bytes) as b from cache_locations where phase = 'Ready' group by cluster order by b desc";
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            theirs.extend(postgres.bench(&format!("{scan};\n"), 1)?);
            ours.push(self.ask(scan).await?.1);
        }
        self.add("scan", Unit::Milliseconds, &ours, (&theirs, &peer), Some(1.0), "bytes by cluster, over all locations")
    }

    /// The answer, and how many milliseconds it took.
    async fn ask(&mut self, sql: &str) -> Result<(Value, f64)> {
        let mut api = match self.client.take() {
            Some(api) => api,
            None => self.api().await?,
        };
        let body = json!({ "sql": sql });
        let started = Instant::now();
        let answer = api.succeed(call(Method::POST, QUERY, "application/json", &body)).await?;
        let taken = milliseconds(started.elapsed());
        let answer = serde_json::from_slice(&answer)?;
        self.client = Some(api);
        Ok((answer, taken))
    }

    async fn copy(&mut self, postgres: &Postgres, table: &str, column: &str) -> Result<()> {
        postgres.create(table)?;
        let csv = postgres.folder.path().join("page.csv");
        let mut after = String::new();
        loop {
            let sql = format!(
                "select * from {table} where namespace = 'default' and {column} > '{after}' order by {column} limit {PAGE}"
            );
            let mut api = self.api().await?;
            let page = api
                .succeed(call(Method::POST, QUERY, "application/json", &json!({ "sql": sql, "format": "csv" })))
                .await?;
            std::fs::write(&csv, &page)?;
            postgres.load(table, &csv)?;
            let text = std::str::from_utf8(&page)?;
            // Namespace and name come first in both tables, and hold no commas.
            let Some(last) = text.lines().skip(1).last() else { break };
            after = last.split(',').nth(1).context("a second column")?.to_owned();
        }
        postgres.index(table)
    }

    /// All datasets by pages, and by a watch, and what that leaves in the hub.
    async fn read_all(&mut self) -> Result<()> {
        let before = self.resident()?;
        let mut api = self.api().await?;
        let (mut pages, mut token, mut items) = (Vec::new(), String::new(), 0);
        loop {
            let path = format!("{DATASETS}?limit=500&continue={token}");
            let started = Instant::now();
            let page = api.succeed(call(Method::GET, &path, "application/json", &Value::Null)).await?;
            pages.push(started.elapsed());
            let page: Value = serde_json::from_slice(&page)?;
            items += page["items"].as_array().map_or(0, Vec::len);
            token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if token.is_empty() {
                break;
            }
        }
        ensure!(items >= self.datasets, "{items} datasets were listed");
        pages.sort_unstable();
        let p99 = milliseconds(percentile(&pages, 99));
        self.add(
            "list-page-p99",
            Unit::Milliseconds,
            &[p99],
            (&[1000.0], DESIGN),
            None,
            "pages of 500, all of them at one revision",
        )?;
        let listed = self.resident()?.saturating_sub(before) as f64 / 1024.0;
        self.add(
            "list-growth",
            Unit::Mib,
            &[listed.max(0.001)],
            (&[64.0], DESIGN),
            None,
            "memory of the hub after the list",
        )?;
        // A watch from now on, which is not to hold what there is.
        let started = Instant::now();
        let list: Value = serde_json::from_slice(
            &api.succeed(call(Method::GET, &format!("{DATASETS}?limit=1"), "application/json", &Value::Null)).await?,
        )?;
        let version = list["metadata"]["resourceVersion"].as_str().context("a resourceVersion")?;
        let path = format!("{DATASETS}?watch=true&resourceVersion={version}");
        let mut body = api.begin(call(Method::GET, &path, "application/json", &Value::Null)).await?.into_body();
        let mut writer = self.api().await?;
        let patch = json!({ "metadata": { "labels": { "touched": "yes" } } });
        writer
            .succeed(call(Method::PATCH, &format!("{DATASETS}/{}", name(7)), "application/merge-patch+json", &patch))
            .await?;
        let frame = tokio::time::timeout(LIMIT, body.frame()).await?.context("the watch ended")??;
        ensure!(
            frame.data_ref().is_some_and(|data| String::from_utf8_lossy(data).contains(&name(7))),
            "another event came first"
        );
        self.add(
            "watch",
            Unit::Milliseconds,
            &[milliseconds(started.elapsed())],
            (&[1000.0], DESIGN),
            None,
            "from opening it to the first event",
        )
    }
}

fn at(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn call(method: Method, path: &str, content_type: &'static str, body: &Value) -> Call {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    Call { method, path: path.to_owned(), content_type, body }
}
