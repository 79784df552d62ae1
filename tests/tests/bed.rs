//! The test bed itself: the servers that other tests lean on are real and work.

use fluvial_tests::bed::{bed_bin, repo_root};
use fluvial_tests::minio::Minio;
use std::process::Command;

#[test]
fn an_object_put_into_minio_is_read_back_unchanged() {
    let minio = Minio::start();
    minio.create_bucket("bed-check");
    let body: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();

    minio.put_object("bed-check", "a folder/ä file.bin", &body);

    assert!(minio.get_object("bed-check", "a folder/ä file.bin") == body, "the object differs from what was put");
    assert!(minio.dir().join("bed-check").is_dir(), "the bucket is not in the server's own folder");
}

#[test]
fn two_servers_share_nothing() {
    let (one, other) = (Minio::start(), Minio::start());
    assert_ne!(one.endpoint, other.endpoint);
    assert_ne!(one.secret_key, other.secret_key);
    assert_ne!(one.dir(), other.dir());
}

#[test]
fn the_beds_kubectl_is_the_pinned_version() {
    let module = std::fs::read_to_string(repo_root().join("tests/bed/go/kubectl/go.mod")).unwrap();
    let pinned = module.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes ")).unwrap();
    let pinned = pinned.trim_end_matches("// indirect").trim();

    let output = Command::new(bed_bin("kubectl")).args(["version", "--client"]).output().unwrap();

    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().next(), Some(format!("Client Version: {pinned}").as_str()));
}
