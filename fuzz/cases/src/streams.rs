//! Bytes of a stream: the lease's messages, and the start of what a client
//! sends to a pod.

use std::cell::OnceCell;

use kvpn_proto::v1;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::input::Input;
use probes::Recognition;
use wire::Connection;

#[path = "../../../sidecar-agent/src/probes.rs"]
mod probes;
#[expect(dead_code, reason = "one end of a connection, of which parts are used")]
#[path = "../../../daemon/src/lease/wire.rs"]
mod wire;

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

/// Bytes on the root daemon's socket, in pieces.
pub fn lease(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_io().build();
            runtime.expect("a runtime")
        });
        runtime.block_on(receive(&mut Input(bytes)));
    });
}

async fn receive(input: &mut Input<'_>) {
    let (mut peer, ours) = UnixStream::pair().expect("a pair of sockets");
    let mut ours = if input.byte() & 1 == 0 {
        Connection::new(ours)
    } else {
        Connection::without_descriptors(ours)
    };
    while !input.is_empty() {
        let piece = input.some(255);
        if peer.write_all(piece).await.is_err() {
            return;
        }
    }
    drop(peer);
    while let Ok(Some((message, descriptors))) = ours.receive::<v1::LeaseRequest>().await {
        assert!(descriptors.is_empty());
        drop(message);
    }
}

/// The first bytes of a client: a decision is never taken back.
pub fn probe(bytes: &[u8]) {
    let (cut, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    let early = probes::recognise(&bytes[..bytes.len().min((*cut).into())]);
    let late = probes::recognise(bytes);
    assert!(early == Recognition::Undecided || early == late);
    if bytes.len() >= probes::LONGEST_HEAD {
        assert_ne!(late, Recognition::Undecided);
    }
}
