//! An issuer of OpenID Connect tokens, by `openssl` alone: its keys, its certificate, its signatures and its server. Nothing
//! of it is the product's own, nor a library of the product's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::bed::free_port;
use crate::federation::{DEADLINE, Process};
use crate::wait::wait_for;

/// An issuer that runs.
#[derive(Debug)]
pub struct Issuer {
    folder: PathBuf,
    /// Its name in tokens, and where it is asked.
    pub url: String,
    /// The certificate, in PEM, that its server's is signed by.
    pub ca: String,
    server: Option<Process>,
    port: u16,
}

fn openssl(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().expect("openssl is installed");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    i64::try_from(since.as_secs()).expect("it is before the end of time")
}

impl Issuer {
    /// An issuer with a first key, `one`, in a folder of its own.
    pub fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder.join(".well-known")).expect("a folder can be made");
        let port = free_port();
        let url = format!("https://127.0.0.1:{port}");
        let config =
            "[ca]\nbasicConstraints=critical,CA:TRUE\n[leaf]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(folder.join("extensions"), config).expect("a file can be written");
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let request = |key: &str, out: &str, name: &str, rest: &[&str]| {
            let mut all = vec!["req", "-new"];
            all.extend(new_key);
            all.extend(["-keyout", key, "-out", out, "-subj", name]);
            all.extend(rest);
            openssl(folder, &all);
        };
        request("ca.key", "ca.csr", "/CN=issuer's authority", &[]);
        let sign = ["-days", "2", "-extfile", "extensions"];
        let self_signed = [
            &["x509", "-req", "-in", "ca.csr", "-signkey", "ca.key", "-out", "ca.crt"],
            &sign[..],
            &["-extensions", "ca"],
        ];
        openssl(folder, &self_signed.concat());
        request("tls.key", "tls.csr", "/CN=issuer", &[]);
        let by_ca = [
            "x509",
            "-req",
            "-in",
            "tls.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            "tls.crt",
        ];
        openssl(folder, &[&by_ca[..], &sign, &["-extensions", "leaf"]].concat());
        let ca = fs::read_to_string(folder.join("ca.crt")).expect("it was just made");
        let issuer = Self { folder: folder.to_owned(), url: url.clone(), ca, server: None, port };
        let discovery = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        fs::write(folder.join(".well-known/openid-configuration"), discovery.to_string())
            .expect("a file can be written");
        issuer.make_key("one");
        issuer.publish(&["one"]);
        let mut issuer = issuer;
        issuer.open();
        issuer
    }

    /// Starts the server.
    pub fn open(&mut self) {
        let mut command = Command::new("openssl");
        command.current_dir(&self.folder).args(["s_server", "-quiet", "-WWW", "-cert", "tls.crt", "-key", "tls.key"]);
        command.args(["-accept", &format!("127.0.0.1:{}", self.port)]).stdin(Stdio::null());
        self.server = Some(Process::start(&mut command, &self.folder.join("log")));
        let address = ("127.0.0.1", self.port);
        wait_for(DEADLINE, "the issuer to listen", || std::net::TcpStream::connect(address).map(drop));
    }

    /// Ends the server.
    pub fn close(&mut self) {
        self.server = None;
    }

    /// Makes an RSA key.
    pub fn make_key(&self, id: &str) {
        openssl(&self.folder, &["genrsa", "-out", &format!("{id}.pem"), "2048"]);
    }

    /// Publishes these keys and no others.
    pub fn publish(&self, ids: &[&str]) {
        let keys: Vec<Value> = ids
            .iter()
            .map(|id| {
                let modulus = openssl(&self.folder, &["rsa", "-in", &format!("{id}.pem"), "-noout", "-modulus"]);
                let digits = String::from_utf8(modulus).expect("it is text");
                let digits = digits.trim().trim_start_matches("Modulus=").as_bytes();
                let byte = |pair: &[u8]| {
                    let text = std::str::from_utf8(pair).expect("it is text");
                    u8::from_str_radix(text, 16).expect("it is hexadecimal")
                };
                let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
                json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": id, "n": URL_SAFE_NO_PAD.encode(bytes), "e": "AQAB" })
            })
            .collect();
        fs::write(self.folder.join("keys"), json!({ "keys": keys }).to_string()).expect("a file can be written");
    }

    /// A token with these claims, signed with a key.
    pub fn token(&self, key: &str, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "RS256", "typ": "JWT", "kid": key })), part(claims));
        fs::write(self.folder.join("signed"), &signed).expect("a file can be written");
        let signature = openssl(&self.folder, &["dgst", "-sha256", "-sign", &format!("{key}.pem"), "signed"]);
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
