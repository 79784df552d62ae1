//! How long after a write was sent each of many watchers hears of it.
//!
//! Writes follow each other only when every watcher has heard of the last: this measures delivery, not a backlog.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::load::fresh_name;
use crate::side::{Api, Side};
use fluvial_tests::connection::Connection;

/// What takes longer was lost.
const DELIVERY_LIMIT: Duration = Duration::from_secs(20);

/// A watch that has begun.
struct Watcher {
    api: Api,
    /// Keeps the body coming.
    _connection: Connection,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watcher {
    async fn begin(side: &Side, number: usize) -> Result<Self> {
        let mut connection = side.connect(number).await?;
        let call = side.api.watch(&mut connection).await?;
        let answer = connection.begin(call).await?;
        ensure!(answer.status().is_success(), "a watch of {} was answered with {}", side.api.name(), answer.status());
        let body = answer.into_body();
        let mut watcher = Self { api: side.api, _connection: connection, body, buffer: Vec::new() };
        if side.api.confirms_watch() {
            let (line, _) = timeout(DELIVERY_LIMIT, watcher.line()).await.context("a watch did not begin")??;
            side.api.names(&line)?;
        }
        Ok(watcher)
    }

    /// The next line, and when it was complete.
    async fn line(&mut self) -> Result<(Vec<u8>, Instant)> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.drain(..=end).collect();
                return Ok((line, Instant::now()));
            }
            let frame = self.body.frame().await.context("a watch ended")??;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Tells when it hears of which object, until the other side hangs up.
    async fn tell(mut self, heard: mpsc::Sender<(String, Instant)>) -> Result<()> {
        loop {
            let (line, at) = self.line().await?;
            for name in self.api.names(&line)? {
                if heard.send((name, at)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Every delivery's time, sorted.
pub(crate) async fn round(side: &Side, watchers: usize, writes: usize) -> Result<Vec<Duration>> {
    let mut tasks = JoinSet::new();
    // A report of each watcher for one write, as there is one write at a time.
    let (heard, mut hearing) = mpsc::channel(watchers);
    for number in 0..watchers {
        tasks.spawn(Watcher::begin(side, number).await?.tell(heard.clone()));
    }
    drop(heard);
    let mut writer = side.connect(0).await?;
    let mut times = Vec::with_capacity(watchers * writes);
    for _ in 0..writes {
        let name = fresh_name();
        let call = side.api.write(&name);
        let sent = Instant::now();
        let deliveries = async {
            let mut count = 0;
            while count < watchers {
                let Some((of, at)) = hearing.recv().await else { anyhow::bail!("every watch has ended") };
                if of == name {
                    times.push(at - sent);
                    count += 1;
                }
            }
            Ok(())
        };
        let both = async { tokio::try_join!(writer.succeed(call), deliveries) };
        timeout(DELIVERY_LIMIT, both).await.with_context(|| {
            format!("{name} was not delivered to {watchers} watchers of {} in time", side.api.name())
        })??;
    }
    times.sort_unstable();
    Ok(times)
}
