//! The two calls that no type can vouch for. Everything else of the crate is safe code.
#![allow(unsafe_code, reason = "see each call")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use fuser::{BackingId, ReplyOpen};

/// Makes `number`, which a session owns, a name of `file`.
///
/// # Errors
/// What the kernel says.
pub(crate) fn take_place(file: &File, number: i32) -> io::Result<()> {
    // SAFETY: `number` is open and belongs to the session, which lives; what it stood for, the socket, is used by nobody
    // any more. The call replaces it in one step, and leaves the session the owner of the number.
    let made = unsafe { nix::libc::dup3(file.as_raw_fd(), number, nix::libc::O_CLOEXEC) };
    if made == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The registration of a file below an inode that the process before this one made, and can no longer end.
pub(crate) fn inherit(reply: &ReplyOpen, number: u32) -> BackingId {
    // SAFETY: the number was given by the kernel on this session's device, and announced before it was used; its process
    // is dead, and the table of inherited numbers gives each of them out once.
    unsafe { reply.wrap_backing(number) }
}
