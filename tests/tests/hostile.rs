//! Callers that mean harm, against a real hub: each is refused in words or cut off, the hub's memory stays bounded, and an
//! honest caller who connects anew all the while hears no more than a little later.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fluvial_tests::connection::{Call, Connection, Protocol, kubeconfig_tls};
use fluvial_tests::federation::Federation;
use fluvial_tests::hostile::{
    HELLO, Neighbour, connect_from, flag, frame, get, get_version, kind, open_files, padding, resident, source,
    tls_from,
};
use fluvial_tests::wait::wait_for;
use http::Method;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// Longer than an honest caller ever waits while others are hostile. A second is the aim on a machine of its own; tests
/// share two cores with each other.
const PATIENCE: Duration = Duration::from_secs(8);
/// How much memory the hub may take for all that is done to it here.
const GROWTH: u64 = 64 << 20;
/// What is no answer within this time is none.
const LIMIT: Duration = Duration::from_secs(60);
/// Where objects are made.
const DATASETS: &str = "/apis/data.fluid.io/v1alpha1/namespaces/default/datasets";

/// A hub, and what it had before anything was done to it.
struct Target {
    federation: Federation,
    address: String,
    tls: ClientConfig,
    before: u64,
    files: usize,
}

impl Target {
    async fn new() -> Self {
        let federation = Federation::start(1, &[]);
        let address = federation.urls[0].trim_start_matches("https://").to_owned();
        let tls = kubeconfig_tls(&federation.api.kubeconfig).unwrap();
        // What the first calls make it keep is no growth.
        for _ in 0..20 {
            Connection::open(&address, &tls, Protocol::Http2).await.unwrap().succeed(get("/readyz")).await.unwrap();
        }
        let process = federation.hub_process(1);
        let (before, files) = (resident(process), open_files(process));
        Self { federation, address, tls, before, files }
    }

    fn neighbour(&self) -> Neighbour {
        Neighbour::start(&self.address, &self.federation.api.kubeconfig)
    }

    /// That memory did not grow beyond bounds, sockets are closed, and the honest caller was served.
    async fn survives(&self, what: &str, neighbour: Neighbour) {
        let process = self.federation.hub_process(1);
        let grown = resident(process).saturating_sub(self.before);
        let (slowest, calls) = neighbour.stop(PATIENCE).await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        eprintln!("{what}: {} MB more, {calls} honest calls, the slowest {slowest:?}", grown >> 20);
        assert!(grown <= GROWTH, "{what}: the hub took {grown} bytes");
        // Its own files for queries and snapshots come and go.
        wait_for(Duration::from_secs(30), what, || {
            let open = open_files(process);
            if open <= self.files + 32 { Ok(()) } else { Err(open) }
        });
    }
}

/// TLS of a caller without a certificate.
fn without_certificate(target: &Target) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let config = std::fs::read_to_string(&target.federation.api.kubeconfig).unwrap();
    let config: serde_json::Value = serde_yaml_ng::from_str(&config).unwrap();
    let pem = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
    let pem = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, pem).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    for root in rustls_pki_types::CertificateDer::pem_slice_iter(&pem) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.with_root_certificates(roots).with_no_client_auth()
}

fn post(path: &str, content_type: &'static str, body: impl Into<Bytes>) -> Call {
    Call { method: Method::POST, path: path.to_owned(), content_type, body: body.into() }
}

/// The first thing that TLS says, for a hub that shall wait for the rest.
fn client_hello(tls: &ClientConfig) -> Vec<u8> {
    let name = "127.0.0.1".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(tls.clone()), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_say_nothing_little_or_garbage_hold_nobody_up() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let target = Target::new().await;
    let neighbour = target.neighbour();
    let hello = client_hello(&target.tls);
    // 20 addresses with 250 sockets each, again and again: some say nothing, some a byte a second, some begin a handshake
    // and do not end it.
    let attackers: Vec<_> = (0..20_u8)
        .map(|number| {
            let (address, hello) = (target.address.clone(), hello.clone());
            tokio::spawn(async move {
                let ends = Instant::now() + Duration::from_secs(12);
                let mut sockets = Vec::new();
                let mut opened = 0;
                while Instant::now() < ends {
                    sockets.retain_mut(|(socket, _): &mut (tokio::net::TcpStream, usize)| {
                        // What the hub closed says so.
                        !matches!(socket.try_read(&mut [0; 4096]), Ok(0))
                    });
                    while sockets.len() < 250 {
                        let Ok(mut socket) = connect_from(source(number), &address).await else { break };
                        match opened % 3 {
                            0 => drop(socket.write_all(&hello).await),
                            1 => drop(socket.write_all(&hello[..1]).await),
                            _ => {}
                        }
                        sockets.push((socket, 1));
                        opened += 1;
                    }
                    for (index, (socket, said)) in sockets.iter_mut().enumerate() {
                        if index % 3 == 1 && *said < hello.len() {
                            let _ = socket.try_write(&hello[*said..=*said]);
                            *said += 1;
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                // What is still open stays so until the hub has had enough of it.
                let reaped = timeout(Duration::from_secs(30), async {
                    while !sockets.is_empty() {
                        sockets.retain_mut(|(socket, _)| {
                            matches!(socket.try_read(&mut [0; 4096]), Err(error) if error.kind() == ErrorKind::WouldBlock)
                        });
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                });
                (opened, reaped.await.is_ok())
            })
        })
        .collect();
    let mut opened = 0;
    for attacker in attackers {
        let (sockets, reaped) = attacker.await.unwrap();
        assert!(reaped, "sockets that stall stay open for ever");
        opened += sockets;
    }
    assert!(opened >= 20 * 250, "only {opened} sockets could be opened");
    target.survives("sockets that stall", neighbour).await;

    let neighbour = target.neighbour();
    for number in 0..200_u8 {
        let mut socket = connect_from(source(number % 20), &target.address).await.unwrap();
        let garbage: Vec<u8> =
            (0..65_536_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> (number % 24)) as u8).collect();
        let _ = socket.write_all(&garbage).await;
        let ended = timeout(LIMIT, async { while socket.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} }).await;
        assert!(ended.is_ok(), "garbage instead of TLS was not cut off");
    }
    target.survives("garbage instead of TLS", neighbour).await;
}

/// Writes what `next` makes until the hub ends the connection or there is no more; how many bytes it took, and what it
/// said.
async fn pour(
    target: &Target,
    tls: &ClientConfig,
    number: u8,
    first: &[u8],
    mut next: impl FnMut(usize) -> Option<Vec<u8>> + Send,
) -> (usize, Vec<u8>, bool) {
    let stream = tls_from(source(number), &target.address, tls, Protocol::Http2).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move {
        let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            // What is said at the end is of interest; a flood is answered by one.
            said.extend_from_slice(&buffer[..count]);
            let keep = said.len().saturating_sub(65_536);
            said.drain(..keep);
        }
        said
    });
    let mut sent = 0;
    let mut cut = writer.write_all(&[HELLO, first].concat()).await.is_err();
    while !cut && let Some(bytes) = next(sent) {
        let written = timeout(LIMIT, writer.write_all(&bytes)).await.expect("the hub reads, or closes");
        cut = written.is_err() || reading.is_finished();
        sent += bytes.len();
    }
    let _ = writer.shutdown().await;
    let said = timeout(LIMIT, reading).await.expect("the hub closes what its caller has closed").unwrap();
    (sent, said, cut)
}

/// A request that is given up at once.
fn given_up(stream: u32) -> Vec<u8> {
    let open = frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, stream, &get_version());
    [open, frame(kind::RESET, 0, stream, &8_u32.to_be_bytes())].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_are_cut_off() {
    let target = Target::new().await;
    let anonymous = without_certificate(&target);
    for (who, tls) in [("an anonymous caller", &anonymous), ("a user", &target.tls)] {
        let neighbour = target.neighbour();
        // Headers without end: 16 KiB are read of them.
        let begun = frame(kind::HEADERS, flag::END_STREAM, 1, &get_version());
        let more = frame(kind::CONTINUATION, 0, 1, &padding(16_000));
        let (sent, _, cut) = pour(&target, tls, 1, &begun, |sent| (sent < 64 << 20).then(|| more.clone())).await;
        assert!(cut && sent < 16 << 20, "{who}: {sent} bytes of headers were taken");
        // Small ones, many of them, none with content.
        let empty = frame(kind::CONTINUATION, 0, 1, &[]).repeat(1000);
        let (sent, _, cut) = pour(&target, tls, 2, &begun, |sent| (sent < 64 << 20).then(|| empty.clone())).await;
        assert!(cut && sent < 16 << 20, "{who}: {sent} bytes of empty frames were taken");
        // Requests that are given up at once (CVE-2023-44487).
        let mut streams = (0..40_000_u32).map(|number| 1 + 2 * number);
        let resets = |_| {
            let some: Vec<u8> = streams.by_ref().take(20).flat_map(given_up).collect();
            (!some.is_empty()).then_some(some)
        };
        let (sent, _, cut) = pour(&target, tls, 3, &[], resets).await;
        eprintln!("{who}: {sent} bytes of resets, cut off: {cut}");
        // What asks for answers, from somebody who reads them: as many as it likes, at its own cost.
        for flood in [frame(kind::PING, 0, 0, &[7; 8]), frame(kind::SETTINGS, 0, 0, &[])] {
            let many = flood.repeat(1000);
            pour(&target, tls, 4, &[], |sent| (sent < 4 << 20).then(|| many.clone())).await;
        }
        target.survives(&format!("frames of {who}"), neighbour).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_of_a_caller_that_reads_nothing_cost_nothing() {
    let target = Target::new().await;
    let neighbour = target.neighbour();
    let mut stream = tls_from(source(1), &target.address, &target.tls, Protocol::Http2).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    let many = frame(kind::PING, 0, 0, &[7; 8]).repeat(1000);
    let mut sent = 0;
    // The hub stops reading when it cannot write: then the caller waits for itself.
    while sent < 64 << 20
        && let Ok(Ok(())) = timeout(Duration::from_secs(2), stream.write_all(&many)).await
    {
        sent += many.len();
    }
    assert!(sent < 64 << 20, "the hub takes pings for ever without being heard");
    target.survives("pings that nobody reads", neighbour).await;
}

/// The status line of an answer over HTTP/1, whatever was sent.
async fn http1(target: &Target, tls: &ClientConfig, request: &[u8]) -> String {
    let mut stream = tls_from(source(1), &target.address, tls, Protocol::Http1).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut said = vec![0; 4096];
    let count = timeout(LIMIT, stream.read(&mut said)).await.expect("an answer").unwrap_or_default();
    String::from_utf8_lossy(&said[..count]).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_too_deep_or_too_slow_is_told_so() {
    let target = Target::new().await;
    let neighbour = target.neighbour();
    let tls = &target.tls;

    // Headers.
    let head = |headers: &str| format!("GET /version HTTP/1.1\r\nhost: hub\r\n{headers}\r\n").into_bytes();
    let large = http1(&target, tls, &head(&format!("x: {}\r\n", "a".repeat(100_000)))).await;
    assert!(large.contains(" 431 "), "{large}");
    let many = http1(&target, tls, &head(&"a: b\r\n".repeat(10_000))).await;
    assert!(many.contains(" 431 "), "{many}");
    let mut slow = tls_from(source(2), &target.address, tls, Protocol::Http1).await.unwrap();
    let slow_head = tokio::spawn(async move {
        // A byte a second, until somebody has had enough.
        let began = Instant::now();
        for byte in b"GET /version HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'a')) {
            let over = slow.write_all(&[*byte]).await.is_err();
            let said = timeout(Duration::from_secs(1), slow.read(&mut [0; 1024])).await;
            if over || said.is_ok_and(|read| !read.is_ok_and(|count| count > 0)) {
                return began.elapsed();
            }
            assert!(began.elapsed() < LIMIT, "a byte a second is read for ever");
        }
        unreachable!("the loop has no end")
    });

    // Bodies: each refusal says what it is about.
    let mut connection = Connection::open(&target.address, tls, Protocol::Http2).await.unwrap();
    let aliases =
        (1..30).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(","))).collect::<String>();
    let cases = [
        ("4 MiB", "application/json", format!("{{\"a\":\"{}\"}}", "a".repeat(4 << 20)), 413),
        ("deep JSON", "application/json", "[".repeat(1 << 20), 400),
        ("deep objects", "application/json", "{\"a\":".repeat(200_000), 400),
        ("deep YAML", "application/yaml", "[".repeat(1_000_000), 400),
        ("aliases of aliases", "application/yaml", format!("a0: &a0 [x]\n{aliases}"), 400),
        ("a million nulls", "application/json", format!("[{}0]", "0,".repeat(600_000)), 400),
        ("no JSON", "application/json", "\u{fffd}".to_owned(), 400),
        ("a question of 1 MiB", "application/json", format!("{{\"sql\":\"SELECT {}1\"}}", "1+".repeat(1 << 19)), 422),
    ];
    for (what, content_type, body, expected) in cases {
        let path = if what.starts_with("a question") { "/apis/fluvial.io/v1alpha1/query" } else { DATASETS };
        let reply = connection.call(post(path, content_type, body)).await;
        let Ok(reply) = reply else {
            // Refused while the body was still on its way.
            connection = Connection::open(&target.address, tls, Protocol::Http2).await.unwrap();
            assert_eq!(expected, 413, "{what}");
            continue;
        };
        let said = String::from_utf8_lossy(&reply.body[..reply.body.len().min(300)]).into_owned();
        assert_eq!(reply.status.as_u16(), expected, "{what}: {said}");
        assert!(said.contains("\"kind\":\"Status\""), "{what}: {said}");
    }

    // gRPC that is none.
    for body in [&b"\0\xff\xff\xff\xff"[..], b"garbage", b"\x01\0\0\0\x01x"] {
        let call = post("/fluvial.v1.JoinService/Join", "application/grpc", Bytes::copy_from_slice(body));
        let reply = connection.call(call).await.unwrap();
        assert!(reply.grpc.is_some_and(|code| code != "0"), "{body:?}");
    }

    // A body that does not end, and one that comes a byte a second.
    let endless = format!("POST {DATASETS} HTTP/1.1\r\nhost: hub\r\ncontent-type: application/json\r\n");
    let chunk = format!("{:x}\r\n{}\r\n", 65_536, " ".repeat(65_536));
    let unending = format!("{endless}transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(100));
    let said = http1(&target, tls, unending.as_bytes()).await;
    assert!(said.contains(" 413 "), "{said}");
    let said = http1(&target, tls, format!("{endless}content-length: 100\r\n\r\n{{").as_bytes()).await;
    assert!(said.contains(" 408 "), "{said}");

    assert!(slow_head.await.unwrap() < Duration::from_secs(30));
    target.survives("large, deep and slow requests", neighbour).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_wait_for_their_turn() {
    let target = Target::new().await;
    let neighbour = target.neighbour();
    // 32 bodies of 600 KB that become ten megabytes each when they are parsed.
    let body = Bytes::from(format!("{{\"spec\":[{}0]}}", "[],".repeat(200_000)));
    let senders: Vec<_> = (0..32)
        .map(|_| {
            let (address, tls, body) = (target.address.clone(), target.tls.clone(), body.clone());
            tokio::spawn(async move {
                let mut connection = Connection::open(&address, &tls, Protocol::Http2).await.unwrap();
                // Whoever waits too long is told to come again.
                connection.call(post(DATASETS, "application/json", body)).await.map(|reply| reply.status.as_u16())
            })
        })
        .collect();
    let process = target.federation.hub_process(1);
    let mut most = 0;
    let mut answers = Vec::new();
    for sender in senders {
        while !sender.is_finished() {
            most = most.max(resident(process));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answers.extend(sender.await.unwrap());
    }
    let (slowest, _) = neighbour.stop(PATIENCE).await.unwrap();
    eprintln!("large bodies: at most {} MB more, the slowest honest call {slowest:?}", (most - target.before) >> 20);
    assert!(most - target.before < 150 << 20, "the hub took {} MB", (most - target.before) >> 20);
    assert!(answers.iter().all(|code| matches!(code, 400 | 422 | 429)), "{answers:?}");
    assert!(answers.len() >= 16 && answers.iter().any(|code| *code != 429), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_watches_and_questions_and_no_more() {
    let target = Target::new().await;
    let neighbour = target.neighbour();
    let watch = || get(&format!("{DATASETS}?watch=true&timeoutSeconds=600"));
    let (mut open, mut refused, mut connections) = (Vec::new(), 0, Vec::new());
    for _ in 0..16 {
        let mut connection = Connection::open(&target.address, &target.tls, Protocol::Http2).await.unwrap();
        for _ in 0..128 {
            let answer = connection.begin(watch()).await.unwrap();
            match answer.status().as_u16() {
                200 => open.push(answer),
                429 => refused += 1,
                other => panic!("{other}"),
            }
        }
        connections.push(connection);
    }
    eprintln!("{} watches are open, {refused} were refused", open.len());
    assert!(open.len() >= 500 && refused >= 500, "{} watches, {refused} refused", open.len());
    target.federation.api.kubectl(&["create", "namespace", "busy"]).unwrap();
    drop((open, connections));
    // What is given up is free again.
    let mut connection = Connection::open(&target.address, &target.tls, Protocol::Http2).await.unwrap();
    let ends = Instant::now() + LIMIT;
    while connection.begin(watch()).await.unwrap().status().as_u16() != 200 {
        assert!(Instant::now() < ends, "watches that were given up are counted for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Questions that would run for days.
    let series = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let question = serde_json::json!({ "sql": series }).to_string();
    let askers: Vec<_> = (0..24)
        .map(|_| {
            let (address, tls, question) = (target.address.clone(), target.tls.clone(), question.clone());
            tokio::spawn(async move {
                let mut connection = Connection::open(&address, &tls, Protocol::Http2).await.unwrap();
                let call = post("/apis/fluvial.io/v1alpha1/query", "application/json", question);
                connection.call(call).await.unwrap().status.as_u16()
            })
        })
        .collect();
    let mut answers = Vec::new();
    for asker in askers {
        answers.push(asker.await.unwrap());
    }
    assert!(answers.contains(&422) && answers.iter().all(|code| matches!(code, 422 | 429)), "{answers:?}");
    target.survives("watches and questions", neighbour).await;
    assert_eq!(target.federation.api.query("SELECT 1 AS one").unwrap()[0]["one"], 1);
}
