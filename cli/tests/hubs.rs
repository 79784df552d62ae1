//! Hubs as separate processes, used by a stock `kubectl`: made, joined, killed and started again.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::path::Path;
use std::process::Command;

use fluvial_tests::bed::{bed_bin, free_port};
use fluvial_tests::wait::wait_for;

use support::{DATASET, DEADLINE, Hub, first_hub, fluvial, said};

fn kubectl(kubeconfig: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(bed_bin("kubectl"));
    command.arg("--kubeconfig").arg(kubeconfig).arg("--request-timeout=10s").args(arguments);
    said(command.output().unwrap())
}

fn eventually(kubeconfig: &Path, arguments: &[&str]) -> String {
    wait_for(DEADLINE, &format!("kubectl {arguments:?}"), || kubectl(kubeconfig, arguments))
}

fn apply(kubeconfig: &Path, folder: &Path, yaml: &str) -> Result<String, String> {
    let file = folder.join("objects.yaml");
    std::fs::write(&file, yaml).unwrap();
    kubectl(kubeconfig, &["apply", "-f", file.to_str().unwrap()])
}

#[test]
fn kubectl_works_on_a_hub_and_what_it_wrote_survives_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, kubeconfig) = first_hub(folder.path());
    eventually(&kubeconfig, &["get", "namespace", "default"]);
    assert_eq!(apply(&kubeconfig, folder.path(), DATASET).unwrap().trim(), "dataset.data.fluid.io/d created");
    assert_eq!(apply(&kubeconfig, folder.path(), DATASET).unwrap().trim(), "dataset.data.fluid.io/d unchanged");
    let unknown = DATASET.replace("mounts:", "mountz:");
    assert!(apply(&kubeconfig, folder.path(), &unknown).unwrap_err().contains("mountz"));
    let invalid = DATASET.replace("file:///data", "file:///data/../etc");
    assert!(apply(&kubeconfig, folder.path(), &invalid).unwrap_err().contains("spec.mounts[0].mountPoint"));
    kubectl(&kubeconfig, &["label", "dataset", "d", "team=b", "--overwrite"]).unwrap();
    assert!(kubectl(&kubeconfig, &["describe", "dataset", "d"]).unwrap().contains("team=b"));

    let _again = hub.killed_and_run_again();
    let label = ["get", "dataset", "d", "-o", "jsonpath={.metadata.labels.team}"];
    assert_eq!(eventually(&kubeconfig, &label), "b");
    kubectl(&kubeconfig, &["delete", "dataset", "d"]).unwrap();
    assert!(kubectl(&kubeconfig, &["get", "dataset", "d"]).unwrap_err().contains("NotFound"));
}

#[test]
fn the_catalog_answers_sql_and_refuses_to_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let (_hub, kubeconfig) = first_hub(folder.path());
    eventually(&kubeconfig, &["get", "namespace", "default"]);
    apply(&kubeconfig, folder.path(), DATASET).unwrap();
    let query = |sql: &str| {
        said(fluvial().arg("--kubeconfig").arg(&kubeconfig).args(["query", "-o", "csv", sql]).output().unwrap())
    };
    assert_eq!(
        query("select name, labels from datasets").unwrap().replace('\r', ""),
        "name,labels\nd,\"{\"\"team\"\":\"\"a\"\"}\"\n"
    );
    for bad in ["delete from datasets", "attach database 'x' as y", "select 1; select 2", "select * from sqlite_master"]
    {
        assert!(query(bad).is_err(), "{bad}");
    }
    let endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n";
    assert!(query(endless).is_err());
    assert!(query("select count(*) from datasets").is_ok(), "the hub must not notice");
}

#[test]
fn three_hubs_lose_nothing_acknowledged_when_one_is_killed_under_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (first, kubeconfig) = first_hub(folder.path());
    eventually(&kubeconfig, &["get", "namespace", "default"]);
    let url = eventually(&kubeconfig, &["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let mut hubs = Vec::new();
    let mut urls = vec![url.clone()];
    for n in [2, 3] {
        let token =
            said(fluvial().arg("--kubeconfig").arg(&kubeconfig).args(["token", "create", "--hub"]).output().unwrap())
                .unwrap();
        let token = token.split_whitespace().skip_while(|word| *word != "--token").nth(1).unwrap().to_owned();
        let listen = format!("127.0.0.1:{}", free_port());
        let data_dir = folder.path().join(format!("hub-{n}"));
        let join = fluvial()
            .args(["hub", "join", "--hub", &url, "--token", &token, "--listen", &listen, "--data-dir"])
            .arg(&data_dir)
            .output()
            .unwrap();
        said(join).unwrap();
        hubs.push(Hub::run(data_dir));
        urls.push(format!("https://{listen}"));
    }
    // Three voters: only then may one of them go.
    wait_for(DEADLINE, "three voters", || {
        let members = kubectl(&kubeconfig, &["get", "--raw", "/apis/fluvial.io/v1alpha1/hubs"])?;
        if members.matches("\"voter\"").count() == 3 { Ok(()) } else { Err(members) }
    });
    let on = |url: &str, arguments: &[&str]| {
        let mut all = vec!["--server", url];
        all.extend_from_slice(arguments);
        kubectl(&kubeconfig, &all)
    };
    let (mut acknowledged, mut refused) = (Vec::new(), Vec::new());
    let mut first = Some(first);
    for n in 0..24 {
        if n == 8 {
            // The one that began leads: nobody else could have been elected before the others joined.
            first = first.map(Hub::killed_and_run_again);
        }
        let name = format!("n{n}");
        let via = &urls[1 + n % 2];
        // A write in the election may be refused or have an unknown fate: only what was acknowledged counts.
        let file = folder.path().join("object.yaml");
        std::fs::write(&file, DATASET.replace("name: d,", &format!("name: {name},"))).unwrap();
        match on(via, &["create", "-f", file.to_str().unwrap()]) {
            Ok(_) => acknowledged.push(name),
            Err(error) => refused.push(error),
        }
    }
    assert!(acknowledged.len() >= 12, "too few writes were acknowledged: {refused:?}");
    for url in &urls {
        let names = wait_for(DEADLINE, "every hub answers", || on(url, &["get", "datasets", "-o", "name"]));
        for name in &acknowledged {
            assert!(names.contains(&format!("dataset.data.fluid.io/{name}\n")), "{url} lost {name}: {names}");
        }
    }
    drop(first);
}

#[test]
fn a_wrong_usage_exits_2_and_a_failure_exits_1_with_one_clear_line() {
    let usage = fluvial().args(["token", "create"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    let failure = fluvial().args(["--kubeconfig", "/nonexistent/kubeconfig", "query", "select 1"]).output().unwrap();
    assert_eq!(failure.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&failure.stderr)
            .starts_with("error: there is no kubeconfig at /nonexistent/kubeconfig")
    );
}
