//! The port of a hub that was killed a moment ago.

use tokio::net::TcpListener;

use crate::run::{PORT_WITHIN, RunError, listen};

#[tokio::test(start_paused = true)]
async fn a_port_that_is_about_to_be_free_is_waited_for_and_no_other() {
    let before = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = before.local_addr().unwrap();
    let waiting = tokio::spawn(listen(address));
    tokio::time::sleep(PORT_WITHIN / 2).await;
    assert!(!waiting.is_finished());
    drop(before);
    let taken = waiting.await.unwrap().unwrap();

    let refused = listen(address).await;
    assert!(matches!(&refused, Err(RunError::Listen { address: named, .. }) if *named == address.to_string()));
    drop(taken);
}
