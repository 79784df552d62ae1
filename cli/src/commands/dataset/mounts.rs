//! How sources are written on the command line: `URI`, `URI=PATH`, or `PATH=URI`; a local folder stands for `file://`.
//!
//! A '=' is part of the location unless a '/' follows it, so that folders such as `year=2024` need no care.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use fluvial_model::kinds::Mount;

/// The mounts of one dataset.
///
/// # Errors
/// If a local folder is not there, or a text is empty.
pub(super) fn read(texts: &[String]) -> Result<Vec<Mount>> {
    let mut mounts = texts.iter().map(|text| mount(text)).collect::<Result<Vec<Mount>>>()?;
    if let [one] = mounts.as_mut_slice() {
        if one.path.is_empty() {
            "/".clone_into(&mut one.path);
        }
        return Ok(mounts);
    }
    for mount in mounts.iter_mut().filter(|mount| mount.path.is_empty()) {
        let point = mount.mount_point.trim_end_matches('/');
        let last = point.rsplit('/').next().filter(|last| !last.is_empty() && !last.ends_with(':'));
        let last = last.with_context(|| format!("--mount {point}: say where it appears: {point}=/PATH"))?;
        mount.path = format!("/{last}");
    }
    Ok(mounts)
}

fn mount(text: &str) -> Result<Mount> {
    let (location, path) = split(text);
    let mount_point = location_uri(location).with_context(|| format!("--mount {text}"))?;
    let path = path.map(|path| format!("/{}", path.trim_matches('/'))).unwrap_or_default();
    let name = path.trim_matches('/').replace('/', "-");
    Ok(Mount { mount_point, path, name, ..Mount::default() })
}

/// The location and the path in the tree, if one is given.
fn split(text: &str) -> (&str, Option<&str>) {
    if text.starts_with('/')
        && let Some((path, uri)) = text.split_once('=')
        && uri.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
    {
        return (uri, Some(path));
    }
    match text.rsplit_once("=/") {
        // The last one counts: a location that holds "=/" itself is written with a path.
        Some((location, _)) if !location.is_empty() => (location, Some(&text[location.len() + 1..])),
        _ => (text, None),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// A URI as it is; a folder of this machine as `file://`.
///
/// # Errors
/// If it is neither.
pub(crate) fn location_uri(location: &str) -> Result<String> {
    if location.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
        return Ok(location.to_owned());
    }
    if location.is_empty() {
        bail!("a location is required: s3://bucket/prefix, file:///dir or a folder");
    }
    // An absolute path may be meant for another machine: it is taken as it is written.
    if location.starts_with('/') {
        return Ok(format!("file://{location}"));
    }
    let folder = Path::new(location).canonicalize();
    let folder = folder.with_context(|| format!("\"{location}\" is no URI, and no folder here"))?;
    let folder = folder.to_str().context("the folder's path is not UTF-8")?;
    Ok(format!("file://{folder}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(texts: &[&str]) -> Vec<(String, String)> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        read(&texts).unwrap().into_iter().map(|mount| (mount.mount_point, mount.path)).collect()
    }

    #[test]
    fn one_mount_is_the_root_unless_it_says_otherwise() {
        for (text, point, path) in [
            ("s3://bucket/a", "s3://bucket/a", "/"),
            ("s3://bucket/a=/x/y/", "s3://bucket/a", "/x/y"),
            ("/x=s3://bucket/a", "s3://bucket/a", "/x"),
            ("/data", "file:///data", "/"),
            ("/data=/x", "file:///data", "/x"),
            ("file:///data/year=2024", "file:///data/year=2024", "/"),
            ("/data/year=2024/month=1", "file:///data/year=2024/month=1", "/"),
            ("/data/year=2024=/", "file:///data/year=2024", "/"),
            ("s3://bucket/odd=/=/x", "s3://bucket/odd=/", "/x"),
        ] {
            assert_eq!(points(&[text]), [(point.to_owned(), path.to_owned())], "{text}");
        }
    }

    #[test]
    fn several_mounts_appear_under_their_last_part() {
        assert_eq!(
            points(&["s3://bucket", "file:///a/b/", "/c=/d"]),
            [
                ("s3://bucket".to_owned(), "/bucket".to_owned()),
                ("file:///a/b/".to_owned(), "/b".to_owned()),
                ("file:///c".to_owned(), "/d".to_owned()),
            ]
        );
        assert!(read(&["file:///".to_owned(), "/a".to_owned()]).is_err());
    }

    #[test]
    fn a_relative_folder_must_be_there() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(location_uri(".").unwrap(), format!("file://{}", here.display()));
        assert!(location_uri("./no such folder").unwrap_err().to_string().contains("no folder here"));
        assert!(location_uri("").is_err());
    }
}
