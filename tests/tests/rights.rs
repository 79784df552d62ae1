//! Users who are not the administrator, from outside: `kubectl` and `fluvial` with kubeconfigs of their own, roles and
//! bindings that take effect on every hub, and credentials that are taken back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use fluvial_tests::bed::bed_bin;
use fluvial_tests::federation::{Api, DEADLINE, Up};
use fluvial_tests::wait::wait_for;
use serde_json::Value;

const DATASET: &str = "apiVersion: data.fluid.io/v1alpha1\nkind: Dataset\nmetadata: {name: d}\nspec:\n  mounts:\n  \
                       - mountPoint: https://store.invalid/d/\n    name: d\n";

/// A kubeconfig for a new user.
fn user(api: &Api, folder: &Path, arguments: &[&str]) -> Api {
    let kubeconfig = folder.join(format!("{}.kubeconfig", arguments.join("-")));
    let mut all = vec!["user", "create"];
    all.extend(arguments);
    all.extend(["-f", kubeconfig.to_str().unwrap()]);
    api.fluvial(&all).unwrap();
    Api { kubeconfig }
}

#[track_caller]
fn refused(outcome: Result<String, String>, what: &str) {
    let error = outcome.expect_err(what);
    assert!(error.contains("Forbidden") || error.contains("forbidden"), "{what}: {error}");
}

/// Waits until `kubectl auth can-i` says what is expected.
#[track_caller]
fn can(api: &Api, question: &[&str], expected: bool) {
    let mut all = vec!["auth", "can-i", "-q"];
    all.extend(question);
    wait_for(DEADLINE, "the right to be in force", || {
        let answer = api.kubectl(&all);
        if answer.is_ok() == expected { Ok(()) } else { Err(format!("{question:?}: {answer:?}")) }
    });
}

fn rows(api: &Api, sql: &str) -> Vec<Value> {
    serde_json::from_str(&api.fluvial(&["query", sql, "-o", "json"]).unwrap()).unwrap()
}

#[test]
fn users_do_what_their_roles_say_and_nothing_more() {
    let up = Up::start(3, &["a"]);
    let admin = &up.api;
    let kubectl = |arguments: &[&str]| admin.kubectl(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
    admin.apply(DATASET).unwrap();
    kubectl(&["create", "namespace", "team"]);
    let ann = user(admin, up.folder(), &["ann", "--group", "vision"]);
    let bob = user(admin, up.folder(), &["bob", "--token"]);
    assert!(admin.fluvial(&["user", "list"]).unwrap().contains("vision"));

    // Nothing at first, but to see what there is.
    for who in [&ann, &bob] {
        assert!(who.kubectl(&["api-resources"]).unwrap().contains("datamigrates"));
        refused(who.kubectl(&["get", "datasets"]), "no role");
        refused(who.fluvial(&["token", "create", "--cluster", "x"]), "no role");
        assert_eq!(rows(who, "select * from datasets"), Vec::<Value>::new());
    }
    assert!(ann.kubectl(&["auth", "whoami"]).unwrap().contains("vision"));

    // kubectl makes roles and bindings; they are in force at every hub.
    kubectl(&["create", "rolebinding", "readers", "--clusterrole=view", "--group=vision", "-n", "default"]);
    kubectl(&[
        "create",
        "role",
        "team:writer",
        "--verb=get,list,create,delete",
        "--resource=datasets.data.fluid.io",
        "-n",
        "team",
    ]);
    kubectl(&["create", "rolebinding", "bob", "--role=team:writer", "--user=bob", "-n", "team"]);
    kubectl(&["create", "clusterrole", "cluster-reader", "--verb=get,list", "--resource=clusters.fluvial.io"]);
    kubectl(&["create", "clusterrolebinding", "bob", "--clusterrole=cluster-reader", "--user=bob"]);
    can(&ann, &["list", "datasets.data.fluid.io"], true);
    can(&ann, &["create", "datasets.data.fluid.io"], false);
    can(&bob, &["create", "datasets.data.fluid.io", "-n", "team"], true);
    can(&bob, &["list", "clusters.fluvial.io"], true);
    assert!(ann.kubectl(&["auth", "can-i", "--list"]).unwrap().contains("datasets"));
    assert!(
        admin.kubectl(&["auth", "can-i", "list", "datasets.data.fluid.io", "--as=ann", "--as-group=vision"]).is_ok()
    );
    refused(admin.kubectl(&["get", "secrets", "--as=ann", "--as-group=vision"]), "ann may not");
    refused(bob.kubectl(&["get", "datasets", "-n", "team", "--as=ann"]), "bob may not be ann");

    assert!(ann.kubectl(&["get", "datasets"]).unwrap().contains('d'));
    refused(ann.kubectl(&["delete", "dataset", "d"]), "view only");
    refused(ann.kubectl(&["get", "datasets", "-A"]), "one namespace only");
    let mine = up.folder().join("mine.yaml");
    std::fs::write(&mine, DATASET.replace("name: d}", "name: e}")).unwrap();
    bob.kubectl(&["create", "-n", "team", "-f", mine.to_str().unwrap()]).unwrap();
    refused(bob.kubectl(&["create", "-n", "default", "-f", mine.to_str().unwrap()]), "another namespace");
    refused(
        bob.kubectl(&["create", "rolebinding", "more", "--clusterrole=admin", "--user=bob", "-n", "team"]),
        "no right",
    );

    // SQL shows the same.
    let names = |who: &Api, table: &str| {
        let rows = rows(who, &format!("select name from {table} order by name"));
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((names(&ann, "datasets"), names(&ann, "clusters")), (vec!["d".to_owned()], vec![]));
    assert_eq!((names(&bob, "datasets"), names(&bob, "clusters")), (vec!["e".to_owned()], vec!["a".to_owned()]));
    assert_eq!(names(admin, "datasets"), ["d", "e"]);
}

/// A watch of a user's, line by line.
struct Watching {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Watching {
    fn start(api: &Api) -> Self {
        let mut child = Command::new(bed_bin("kubectl"))
            .arg("--kubeconfig")
            .arg(&api.kubeconfig)
            .args(["get", "datasets", "-w", "--output-watch-events"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (line, lines) = mpsc::channel();
        let out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            for read in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = line.send(read);
            }
        });
        let watching = Self { child, lines, reader: Some(reader) };
        watching.lines.recv_timeout(DEADLINE).expect("the watch shows what is there");
        watching
    }

    /// Waits until the hub has ended it.
    fn ended(&mut self) {
        wait_for(DEADLINE, "the watch to end", || match self.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[test]
fn what_is_taken_back_opens_nothing_any_more_not_even_what_is_open() {
    let up = Up::start(1, &["a"]);
    let admin = &up.api;
    admin.apply(DATASET).unwrap();
    let binding = |user: &str| {
        let name = format!("{user}-view");
        let user = format!("--user={user}");
        admin.kubectl(&["create", "rolebinding", &name, "--clusterrole=view", &user, "-n", "default"]).unwrap();
    };
    let mut people = Vec::new();
    for arguments in [&["ann"][..], &["bob", "--token"], &["cid", "--token"]] {
        binding(arguments[0]);
        let api = user(admin, up.folder(), arguments);
        can(&api, &["watch", "datasets.data.fluid.io"], true);
        people.push((arguments[0], Watching::start(&api), api));
    }
    // A certificate and a token by `user revoke`, a token by the end of its user.
    admin.fluvial(&["user", "revoke", "ann"]).unwrap();
    admin.fluvial(&["user", "revoke", "bob"]).unwrap();
    admin.kubectl(&["delete", "users.fluvial.io", "cid"]).unwrap();
    for (name, watching, api) in &mut people {
        watching.ended();
        let error = api.kubectl(&["get", "datasets"]).expect_err(name);
        assert!(
            error.contains("revoked") || error.contains("Unauthorized") || error.contains("logged in"),
            "{name}: {error}"
        );
    }
    // Who is given something new may go on.
    let again = up.folder().join("again");
    admin.fluvial(&["user", "kubeconfig", "ann", "-f", again.to_str().unwrap()]).unwrap();
    let again = Api { kubeconfig: again };
    can(&again, &["list", "datasets.data.fluid.io"], true);
    // The list of what was given holds no secret.
    admin.fluvial(&["user", "kubeconfig", "bob", "--token", "-f", up.folder().join("bob2").to_str().unwrap()]).unwrap();
    let tokens = admin.kubectl(&["get", "usertokens", "-o", "yaml"]).unwrap();
    let kubeconfig = std::fs::read_to_string(up.folder().join("bob2")).unwrap();
    let secret = kubeconfig.lines().find_map(|line| line.split("token: fluvialu.").nth(1)).unwrap();
    assert!(tokens.contains("user: bob") && !tokens.contains(secret.split('.').nth(1).unwrap()), "{tokens}");
    // A token that is over.
    let short = up.folder().join("short");
    admin.fluvial(&["user", "kubeconfig", "bob", "--token", "--ttl", "1s", "-f", short.to_str().unwrap()]).unwrap();
    let short = Api { kubeconfig: short };
    wait_for(DEADLINE, "the token to expire", || match short.kubectl(&["get", "datasets"]) {
        Err(error) if error.contains("expired") || error.contains("logged in") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
