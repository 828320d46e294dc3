//! How each kind of reply says that something failed.

use fuser::{
    ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr,
};
use rustix::io::Errno;

use super::convert;

pub(super) trait Fails: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! fails {
    ($($reply:ty),*) => {$(
        impl Fails for $reply {
            fn fail(self, errno: Errno) {
                self.error(convert::errno(errno));
            }
        }
    )*};
}

fails!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Gives as much as is asked for, or says how much there is.
pub(super) fn send_xattr(reply: ReplyXattr, size: u32, data: &[u8]) {
    match u32::try_from(data.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(data),
        _ => reply.fail(Errno::RANGE),
    }
}
