//! Links: what they carry is divided among the migrations that run over them, and what they cost is in the plan.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use fluvial_tests::federation::{Api, Up};
use fluvial_tests::minio::Minio;
use fluvial_tests::tree;
use fluvial_tests::wait::wait_for;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Files of one MiB in each of the two datasets.
const FILES: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(60);

fn link(api: &Api, name: &str, spec: &Value) -> Result<String, String> {
    let object =
        json!({ "apiVersion": "fluvial.io/v1alpha1", "kind": "Link", "metadata": { "name": name }, "spec": spec });
    api.apply(&object.to_string())
}

/// The datasets `one` and `two` on the disk of `onprem`, and the Storage `s3` of `cloud`.
fn two_datasets(up: &Up, minio: &Minio) {
    minio.create_bucket("bucket");
    let api = &up.api;
    api.path_storage("disk", "onprem", &up.folder().join("source"));
    api.s3_storage("s3", "cloud", "bucket", minio);
    for (seed, name) in (0..).zip(["one", "two"]) {
        let folder = up.folder().join("source").join(name);
        fs::create_dir_all(&folder).unwrap();
        for file in 0..FILES {
            fs::write(folder.join(format!("{file}.bin")), tree::bytes(seed * FILES + file, 1 << 20)).unwrap();
        }
        api.path_dataset(name, &folder);
    }
}

/// Bytes that each of the two migrations has copied, and whether each has ended.
fn copied(api: &Api) -> [(u64, bool); 2] {
    ["one", "two"].map(|name| {
        let status = api.get("datamigrate", name).unwrap()["status"].clone();
        assert!(status["phase"] != "Failed", "{status}");
        (status["progress"]["bytesDone"].as_u64().unwrap_or(0), status["phase"] == "Complete")
    })
}

#[test]
fn two_migrations_over_one_link_share_its_bandwidth() {
    let minio = Minio::start();
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    two_datasets(&up, &minio);
    let cap = 20 * MIB;
    let spec = json!({ "from": "onprem", "to": "*", "bandwidthBytesPerSecond": cap, "egressPricePerGB": 0.09 });
    link(api, "egress", &spec).unwrap();
    link(api, "back", &json!({ "from": "cloud", "to": "onprem", "bandwidthBytesPerSecond": MIB })).unwrap();

    let rows = api.query("select * from links order by name").unwrap();
    let back = json!({ "name": "back", "from_place": "cloud", "to_place": "onprem",
        "bandwidth_bytes_per_second": MIB, "egress_price_per_gb": null });
    let egress = json!({ "name": "egress", "from_place": "onprem", "to_place": "*",
        "bandwidth_bytes_per_second": cap, "egress_price_per_gb": 0.09 });
    assert_eq!(rows, json!([back, egress]));
    let plan = api.fluvial(&["migrate", "one", "--to", "s3", "--dry-run", "-o", "json"]).unwrap();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["seconds"], json!(3.0), "{plan}");
    assert!((plan["cost"].as_f64().unwrap() - 0.0056623).abs() < 1e-6, "{plan}");
    let said = api.fluvial(&["migrate", "one", "--to", "s3", "--dry-run"]).unwrap();
    assert!(said.contains("At least:   3 s") && said.contains("link egress carries"), "{said}");

    let began = Instant::now();
    api.begin_migration("one", "one", "s3");
    api.begin_migration("two", "two", "s3");
    let mut together = false;
    wait_for(DEADLINE, "both migrations", || {
        let [(one, one_ended), (two, two_ended)] = copied(api);
        // A file ahead each, what was saved, and what one takes of the whole cap until it hears of the other.
        let most = cap * u64::try_from(began.elapsed().as_millis()).unwrap() / 1000 + 6 * MIB;
        assert!(one + two <= most, "{one} and {two} bytes are more than {most}");
        together |= [one, two].iter().all(|bytes| (1..FILES * MIB).contains(bytes));
        if one_ended && two_ended { Ok(()) } else { Err((one, two)) }
    });
    let least = 2.0 * 3.0 * 0.9;
    assert!(began.elapsed().as_secs_f64() >= least, "{:?} for six seconds' worth of bytes", began.elapsed());
    assert!(together, "both ran at the same time");
}

#[test]
fn a_link_that_is_widened_speeds_up_what_runs_over_it() {
    let minio = Minio::start();
    let up = Up::start(1, &["onprem", "cloud"]);
    let api = &up.api;
    two_datasets(&up, &minio);
    let capped = |cap: u64| json!({ "from": "onprem", "to": "cloud", "bandwidthBytesPerSecond": cap });
    // At one MiB per second the two take two minutes.
    link(api, "thin", &capped(MIB)).unwrap();
    let began = Instant::now();
    api.begin_migration("one", "one", "s3");
    api.begin_migration("two", "two", "s3");
    wait_for(DEADLINE, "both to have begun", || {
        let done = copied(api);
        if done.iter().all(|(bytes, _)| *bytes > 0) { Ok(()) } else { Err(done) }
    });

    link(api, "thin", &capped(1 << 30)).unwrap();

    api.complete("one");
    api.complete("two");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}: nothing was sped up", began.elapsed());
    let starts = api.query("select count(*) as n from operations where phase = 'Complete'").unwrap();
    assert_eq!(starts, json!([{ "n": 2 }]));
}

#[test]
fn bad_links_are_refused_by_the_field() {
    let up = Up::start(1, &["a"]);
    for (spec, named) in [
        (json!({ "to": "b" }), "spec.from"),
        (json!({ "from": "a", "to": "B_" }), "spec.to"),
        (json!({ "from": "cloud:", "to": "b" }), "spec.from"),
        (json!({ "from": "a", "to": "a" }), "spec.to"),
        (json!({ "from": "a", "to": "b", "bandwidthBytesPerSecond": 1000 }), "spec.bandwidthBytesPerSecond"),
        (json!({ "from": "a", "to": "b", "egressPricePerGB": -0.5 }), "spec.egressPricePerGB"),
    ] {
        let refused = link(&up.api, "bad", &spec).unwrap_err();
        assert!(refused.contains(named), "{spec}: {refused}");
    }
    assert_eq!(up.api.query("select count(*) as n from links").unwrap(), json!([{ "n": 0 }]));
    link(&up.api, "good", &json!({ "from": "cloud:aws", "to": "*" })).unwrap();
}
