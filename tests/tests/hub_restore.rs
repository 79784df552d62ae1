//! All hubs lost, and one made anew from a snapshot: what agents, users and lost hubs see of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fluvial_tests::bed::bed_bin;
use fluvial_tests::federation::{Api, DEADLINE, Federation};
use fluvial_tests::minio::Minio;
use fluvial_tests::mount::Mounted;
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;
use serde_json::Value;

const HUBS: &str = "/apis/fluvial.io/v1alpha1/hubs";
const LINKS: &str = "/apis/fluvial.io/v1alpha1/links";

/// Reads all of a directory again and again, and stops at the first error or wrong byte.
struct Reader {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Reader {
    fn start(source: PathBuf, mount: PathBuf) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                assert_eq!(tree::difference(&source, &mount), "", "the mount at {}", mount.display());
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { stop, rounds, thread }
    }

    #[track_caller]
    fn reads_on(&self) {
        let aim = self.rounds.load(Ordering::Relaxed) + 2;
        wait_for(DEADLINE, "the reader reads on", || {
            assert!(!self.thread.is_finished(), "the reader has failed");
            let now = self.rounds.load(Ordering::Relaxed);
            if now >= aim { Ok(()) } else { Err(now) }
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the mount was there all the time");
    }
}

/// Every file of a folder and its inode.
fn files(folder: &Path) -> BTreeMap<PathBuf, u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let data = entry.metadata().unwrap();
            if data.is_dir() {
                waiting.push(entry.path());
            } else {
                found.insert(entry.path(), data.ino());
            }
        }
    }
    found
}

/// The contents that a member's cache holds.
fn cached(federation: &Federation, member: &str) -> BTreeMap<PathBuf, u64> {
    let mut found = files(&federation.member_dir(member).join("cache"));
    found.retain(|path, _| path.to_string_lossy().contains("/objects/"));
    found
}

fn password(federation: &Federation) -> String {
    let file = federation.folder().join("password");
    fs::write(&file, "correct horse battery staple\n").unwrap();
    format!("file:{}", file.display())
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn raw(api: &Api, path: &str) -> Value {
    serde_json::from_str(&api.kubectl(&["get", "--raw", path]).unwrap()).unwrap()
}

fn link(api: &Api, name: &str) {
    let yaml = format!(
        "apiVersion: fluvial.io/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec: {{from: '*', to: '*', bandwidthBytesPerSecond: 70000000}}\n"
    );
    api.apply(&yaml).unwrap();
}

fn cache_ready(api: &Api, dataset: &str) {
    wait_for(DEADLINE, &format!("the cache of {dataset}"), || {
        let rows = api.query(&format!("select phase, root from cache_locations where dataset = '{dataset}'"))?;
        let root = api.get("dataset", dataset).ok_or("no dataset")?["status"]["root"].clone();
        if rows[0]["phase"] == "Ready" && rows[0]["root"] == root { Ok(()) } else { Err(rows.to_string()) }
    });
}

/// Waits until a hub that recovers has welcomed the member so many times.
fn welcomed(federation: &Federation, member: &str, times: usize) {
    wait_for(DEADLINE, "the agent to be back, keeping what it holds", || {
        let log = federation.log(&format!("member-{member}"));
        let found = log.matches("caches and mounts stay as they are").count();
        if found >= times { Ok(()) } else { Err(found) }
    });
}

#[test]
fn agents_keep_everything_when_all_hubs_are_lost_and_go_on_with_a_restored_one() {
    let minio = Minio::start();
    minio.create_bucket("data");
    for number in 0..20 {
        minio.put_object("data", &format!("set/{number}"), &tree::bytes(number, 50_000));
    }
    let mut federation = Federation::start(1, &["a"]);
    let password = password(&federation);
    let snapshot = federation.folder().join("snapshot");
    let snapshot = snapshot.to_str().unwrap();
    let api = federation.api.clone();
    let (source, later) = (federation.folder().join("source"), federation.folder().join("later"));
    tree::make(&source, 3, 30, 60_000);
    tree::make(&later, 4, 10, 60_000);
    api.s3_dataset("cached", "data/set", &minio);
    api.fluvial(&["placement", "create", "hot", "--dataset", "cached", "--cluster", "a"]).unwrap();
    cache_ready(&api, "cached");
    api.path_dataset("mounted", &source);
    let mount = Mounted::by(&api, "mounted", "a", federation.folder().join("mounts/mounted"));
    let reader = Reader::start(source.clone(), mount.directory.clone());
    reader.reads_on();
    link(&api, "before");

    let said = api.fluvial(&["hub", "snapshot", "save", snapshot, "--password", &password]).unwrap();
    assert!(said.contains("objects"), "{said}");
    let inspected: Value =
        serde_json::from_str(&api.fluvial(&["hub", "snapshot", "inspect", snapshot, "-o", "json"]).unwrap()).unwrap();
    assert_eq!((&inspected["trustDomain"], &inspected["epoch"]), (&"fluvial.local".into(), &1.into()));
    assert_eq!(inspected["missingBlocks"], 0, "{inspected}");

    // What the snapshot does not know: another version of one dataset, another dataset with a mount, a change.
    minio.put_object("data", "set/new", &tree::bytes(77, 50_000));
    let old_root = api.get("dataset", "cached").unwrap()["status"]["root"].clone();
    api.fluvial(&["dataset", "rescan", "cached"]).unwrap();
    let found = api.wait_until("dataset", "cached", "/status/root", |root| *root != old_root);
    let new_root = found["status"]["root"].clone();
    cache_ready(&api, "cached");
    api.path_dataset("later", &later);
    let lost = Mounted::by(&api, "later", "a", federation.folder().join("mounts/later"));
    let lost_reader = Reader::start(later.clone(), lost.directory.clone());
    lost_reader.reads_on();
    link(&api, "after");
    let last = revision(&api.get("link", "after").unwrap());
    let held = cached(&federation, "a");
    assert!(held.len() >= 21, "{held:?}");
    // A watch that was open when the hub went.
    let mut watch = Command::new(bed_bin("kubectl"))
        .arg("--kubeconfig")
        .arg(&api.kubeconfig)
        .args(["get", "links", "--watch", "-o", "name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    federation.kill_hub(1);
    let (hub, left_over) = (federation.hub_dir(1), federation.folder().join("left-over"));
    fs::rename(&hub, &left_over).unwrap();
    let listen = federation.urls[0].trim_start_matches("https://").to_owned();
    let kubeconfig = federation.folder().join("restored.kubeconfig");
    let restore = ["hub", "snapshot", "restore", snapshot, "--data-dir", hub.to_str().unwrap(), "--listen", &listen];
    let rest = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--password", &password];
    let made = Command::new(fluvial_tests::bed::fluvial_bin()).args(restore).args(rest).output().unwrap();
    fluvial_tests::federation::said(made).unwrap();
    federation.run_hub(1);
    let restored = Api { kubeconfig: kubeconfig.clone() };
    wait_for(DEADLINE, "the restored hub answers", || restored.kubectl(&["get", "namespace", "default"]));

    // The agent comes back by itself and has lost nothing; readers saw no error.
    welcomed(&federation, "a", 1);
    reader.reads_on();
    lost_reader.reads_on();
    assert!(restored.get("dataset", "later").is_none(), "the snapshot did not know it");
    // Sources are listed again, with the keys that the snapshot has, and the version of today is found and not fetched anew.
    restored.wait_until("dataset", "cached", "/status/root", |root| *root == new_root);
    cache_ready(&restored, "cached");
    let still = cached(&federation, "a");
    for (path, inode) in &held {
        assert_eq!(still.get(path), Some(inode), "{} was fetched anew or is gone", path.display());
    }

    // Revisions are above all that were ever given out; who knew old ones lists anew.
    let listed = raw(&restored, LINKS);
    assert!(revision(&listed) > last);
    let names: Vec<_> = listed["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["before"]);
    assert!(listed["items"].as_array().unwrap().iter().all(|item| revision(item) > last));
    let expired = restored.kubectl(&["get", "--raw", &format!("{LINKS}?watch=true&resourceVersion={last}")]);
    let expired = expired.unwrap_or_else(|error| error);
    assert!(expired.contains("410") || expired.contains("too old") || expired.contains("Expired"), "{expired}");
    let _ = watch.kill();
    let _ = watch.wait();
    // The kubeconfig of before is as good as the new one.
    assert!(api.get("link", "before").is_some());

    // The lost hub is started by mistake, where agents look for hubs: they turn away, and it says so.
    federation.kill_hub(1);
    let restored_dir = federation.folder().join("restored");
    fs::rename(&hub, &restored_dir).unwrap();
    fs::rename(&left_over, &hub).unwrap();
    federation.run_hub(1);
    wait_for(DEADLINE, "the lost hub is turned away from", || {
        let (agent, hub) = (federation.log("member-a"), federation.log("hub-1"));
        let turned = hub.contains("replaced this one") && agent.contains("replaced by a restore");
        if turned { Ok(()) } else { Err(federation.last_said("hub-1").join("\n")) }
    });
    reader.reads_on();
    lost_reader.reads_on();
    federation.kill_hub(1);
    fs::rename(&hub, &left_over).unwrap();
    fs::rename(&restored_dir, &hub).unwrap();
    federation.run_hub(1);
    wait_for(DEADLINE, "the restored hub answers", || restored.kubectl(&["get", "namespace", "default"]));
    welcomed(&federation, "a", 2);

    // Caught up: what the hub does not know goes, and nothing else.
    lost_reader.reads_on();
    lost_reader.end();
    let said = restored.fluvial(&["hub", "snapshot", "settle"]).unwrap();
    assert!(said.contains("is over"), "{said}");
    wait_for(DEADLINE, "the unknown mount goes", || if lost.is_there() { Err("it is there") } else { Ok(()) });
    reader.reads_on();
    cache_ready(&restored, "cached");
    let still = cached(&federation, "a");
    let of_the_set = held.keys().filter(|path| still.contains_key(*path)).count();
    assert!(of_the_set >= 21, "{of_the_set} of {} are left", held.len());

    // A dead hub's place is taken by others as always.
    federation.make_hub(2);
    wait_for(DEADLINE, "two voters", || {
        let hubs = raw(&restored, HUBS).to_string();
        if hubs.matches("\"voter\"").count() == 2 { Ok(()) } else { Err(hubs) }
    });
    assert!(federation.on(2, &["get", "dataset", "cached", "mounted"]).is_ok());
    reader.reads_on();
    reader.end();
    mount.end(&restored);
}

#[test]
fn a_file_that_is_not_whole_or_not_ours_makes_no_hub_and_says_why() {
    let federation = Federation::start(1, &[]);
    let (api, folder) = (&federation.api, federation.folder());
    let password = password(&federation);
    let snapshot = folder.join("snapshot");
    let save = |file: &Path, password: &str| {
        api.fluvial(&["hub", "snapshot", "save", file.to_str().unwrap(), "--password", password])
    };
    save(&snapshot, &password).unwrap();
    let whole = fs::read(&snapshot).unwrap();
    // A newer one takes the place of an older one; a failed one does not.
    save(&snapshot, &password).unwrap();
    assert_ne!(fs::read(&snapshot).unwrap(), whole);
    let refused = save(&snapshot, "env:FLUVIAL_NO_SUCH_VARIABLE").unwrap_err();
    assert!(refused.contains("FLUVIAL_NO_SUCH_VARIABLE"), "{refused}");
    let shown = api.command().args(["hub", "snapshot", "save", "x", "--password", "hunter2"]).output().unwrap();
    assert_eq!(shown.status.code(), Some(2));
    assert!(!String::from_utf8_lossy(&shown.stderr).contains("hunter2"));
    let whole = fs::read(&snapshot).unwrap();
    let entries = || fs::read_dir(folder).unwrap().count();
    let place = folder.join("restored");
    let restore = |bytes: &[u8], password: &str| {
        fs::write(&snapshot, bytes).unwrap();
        let before = entries();
        let made = Command::new(fluvial_tests::bed::fluvial_bin())
            .args(["hub", "snapshot", "restore", snapshot.to_str().unwrap(), "--data-dir", place.to_str().unwrap()])
            .args(["--listen", "127.0.0.1:7443", "--password", password])
            .args(["--kubeconfig", folder.join("none").to_str().unwrap()])
            .output()
            .unwrap();
        assert_eq!(made.status.code(), Some(1));
        assert_eq!(entries(), before, "something is left of a restore that failed");
        String::from_utf8(made.stderr).unwrap()
    };
    let other = folder.join("other");
    fs::write(&other, "wrong").unwrap();
    let wrong = restore(&whole, &format!("file:{}", other.display()));
    assert!(wrong.contains("the password is not the one"), "{wrong}");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 4;
    assert!(restore(&damaged, &password).contains("is damaged"));
    assert!(restore(&whole[..whole.len() / 2], &password).contains("ends too early"));
    assert!(restore(b"a file\n", &password).contains("no snapshot of a Fluvial hub"));
    let mut newer = whole;
    newer[16] = 9;
    let newer = restore(&newer, &password);
    assert!(newer.contains("has format 9") && newer.contains("up to 1"), "{newer}");
}
