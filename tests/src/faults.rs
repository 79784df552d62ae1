//! One fault under clients that work: before it, while it lasts, after it; then a judgement and its figures.
//!
//! [`under`] is the frame of every test of hubs under faults. The fault itself says, in words, how it was seen to take
//! effect: a fault that did not is a failed test. Figures go to standard error as one JSON line, and to the file that
//! `FLUVIAL_FIGURES` names, from which the program `faults` makes its table.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clients::{Clients, Outcome};
use crate::federation::{DEADLINE, Federation};
use crate::wait::wait_for;

const CLIENTS: usize = 9;
const REGISTERS: usize = 3;
/// Writes that show that a federation works.
const SOME: u64 = 60;

/// Waits for so many more acknowledged writes.
#[track_caller]
pub fn more(federation: &Federation, clients: &Clients, what: &str) {
    let (since, aim) = (Instant::now(), clients.acknowledged() + SOME);
    wait_for(DEADLINE, what, || {
        let now = clients.acknowledged();
        let said = || (1..=federation.urls.len()).map(|hub| federation.last_said(&format!("hub-{hub}")));
        if now >= aim { Ok(()) } else { Err((now, said().collect::<Vec<_>>())) }
    });
    eprintln!("{what}: after {:?}", since.elapsed());
}

/// Lets clients work before, during and after `fault`, and judges what they saw; then all hubs must have the same.
/// `fault` returns how it was seen to take effect; `seed` is what it was drawn from, if it was.
#[track_caller]
pub fn under(federation: &mut Federation, seed: Option<u64>, fault: impl FnOnce(&mut Federation, &Clients) -> String) {
    let hubs = federation.running();
    under_at(federation, &hubs, seed, fault);
}

/// The same, with clients at these hubs alone: a hub that leaves for good tells its watchers nothing more.
#[track_caller]
pub fn under_at(
    federation: &mut Federation,
    hubs: &[usize],
    seed: Option<u64>,
    fault: impl FnOnce(&mut Federation, &Clients) -> String,
) {
    let clients = Clients::start(federation, hubs, CLIENTS, REGISTERS);
    more(federation, &clients, "writes before the fault");
    let proof = fault(federation, &clients);
    assert!(!proof.is_empty(), "nothing shows that the fault took effect");
    more(federation, &clients, "writes after the fault");
    let outcome = clients.judge();
    eprintln!("{outcome:?}");
    assert!(outcome.told > 0, "watchers were told nothing");
    agree(federation);
    tell(&figures(&proof, seed, &outcome));
}

/// Waits until all hubs that run have the same registers.
#[track_caller]
pub fn agree(federation: &Federation) {
    wait_for(DEADLINE, "the hubs to agree", || {
        let all: Vec<Result<String, String>> =
            federation.running().into_iter().map(|hub| registers(federation, hub)).collect();
        if all.windows(2).all(|pair| pair[0].is_ok() && pair[0] == pair[1]) { Ok(()) } else { Err(all) }
    });
}

/// The registers as one hub has them.
fn registers(federation: &Federation, hub: usize) -> Result<String, String> {
    let list = federation.on(hub, &["get", "links", "-o", "json"])?;
    let list: Value = serde_json::from_str(&list).map_err(|error| error.to_string())?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.map(|item| format!("{} {}\n", item["metadata"], item["spec"])).collect())
}

/// The line of one test. What was lost or stale is nothing: the judgement fails a test otherwise.
fn figures(proof: &str, seed: Option<u64>, outcome: &Outcome) -> Value {
    let mut outages: Vec<u64> = outcome.outages.iter().filter_map(|gap| gap.as_millis().try_into().ok()).collect();
    outages.sort_unstable();
    json!({
        "test": std::thread::current().name(),
        "proof": proof,
        "seed": seed,
        "writes": outcome.writes,
        "reads": outcome.reads,
        "unknown": outcome.unknown,
        "told": outcome.told,
        "outages": outages.len(),
        "outage_median_ms": outages.get(outages.len() / 2),
        "outage_max_ms": outages.last(),
        "lost": 0,
        "stale": 0,
    })
}

#[track_caller]
fn tell(figures: &Value) {
    eprintln!("{figures}");
    if let Some(path) = std::env::var_os("FLUVIAL_FIGURES") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        // One write: tests run beside each other.
        file.and_then(|mut file| file.write_all(format!("{figures}\n").as_bytes())).expect("figures can be written");
    }
}

/// Whether a hub answers a linearizable read within two seconds.
pub fn answers(federation: &Federation, hub: usize) -> bool {
    federation.on(hub, &["--request-timeout=2s", "get", "namespace", "default"]).is_ok()
}

/// What a hub says when it is asked whether it is ready: an error, if it is not.
///
/// # Errors
/// With what it says.
pub fn ready(federation: &Federation, hub: usize) -> Result<String, String> {
    federation.on(hub, &["--request-timeout=2s", "get", "--raw", "/readyz"])
}

/// The number of another hub than `old` that leads, as `witness` says.
#[track_caller]
pub fn another_leads(federation: &Federation, witness: usize, old: usize) -> usize {
    wait_for(DEADLINE, "another leader", || {
        let leader = federation.leader_seen_by(witness)?;
        if leader == old { Err(format!("{old} leads")) } else { Ok(leader) }
    })
}

/// Waits until a hub is one of the others again.
#[track_caller]
pub fn follows(federation: &Federation, hub: usize) {
    wait_for(DEADLINE, "it to follow", || {
        if answers(federation, hub) { Ok(()) } else { Err(federation.last_said(&format!("hub-{hub}"))) }
    });
}

/// Waits for one acknowledged write, and says how long it took.
#[track_caller]
pub fn next_write(clients: &Clients) -> Duration {
    let (since, before) = (Instant::now(), clients.acknowledged());
    wait_for(DEADLINE, "a write", || if clients.acknowledged() > before { Ok(()) } else { Err(before) });
    since.elapsed()
}

/// One of three hubs that is not this one.
pub fn other_than(hub: usize) -> usize {
    hub % 3 + 1
}
