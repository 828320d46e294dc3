//! Memory of a connection's two rings.
//!
//! A ring must be large to be fast, while most connections carry little. The
//! rings are mapped, so the kernel gives them memory page by page as bytes come
//! to lie there: an idle connection costs a page each.

use memmap2::MmapMut;
use smoltcp::socket::tcp::{Socket, SocketBuffer};

/// How much each ring holds when the system maps no more memory.
const SMALL: usize = 16 << 10;

/// What a socket's rings lie in. Must be kept for as long as the socket.
pub(super) struct Buffers {
    _memory: Option<MmapMut>,
}

impl Buffers {
    /// Makes a socket with two rings of `size` bytes each.
    pub(super) fn socket(size: usize) -> (Socket<'static>, Self) {
        match MmapMut::map_anon(2 * size) {
            Ok(mut memory) => {
                let (receive, send) = lend(&mut memory).split_at_mut(size);
                let socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
                let memory = Some(memory);
                (socket, Self { _memory: memory })
            }
            Err(error) => {
                tracing::warn!(%error, "a connection gets small buffers");
                let ring = || SocketBuffer::new(vec![0; SMALL]);
                (Socket::new(ring(), ring()), Self { _memory: None })
            }
        }
    }
}

#[expect(
    unsafe_code,
    reason = "a stack holds its socket and the memory of its rings"
)]
fn lend(memory: &mut MmapMut) -> &'static mut [u8] {
    let (start, length) = (memory.as_mut_ptr(), memory.len());
    // SAFETY: the mapping stays where it is when its owner moves, and `Buffers`,
    // which does nothing with it, outlives the socket: `Stack` drops it last.
    unsafe { std::slice::from_raw_parts_mut(start, length) }
}
