//! The calls that no type can vouch for. Everything else of the workspace is safe code.
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

/// Does something with the name of a registered file as answers need it; the registration stays as it is.
pub(crate) fn with_registered(reply: ReplyOpen, number: u32, answer: impl FnOnce(ReplyOpen, &BackingId)) {
    // SAFETY: the kernel gave the number on this session's device, and it is registered as long as its `Registered` lives,
    // which the caller has. What is made here is taken apart again, so that nothing ends the registration twice.
    let backing = unsafe { reply.wrap_backing(number) };
    answer(reply, &backing);
    backing.into_raw();
}

nix::ioctl_write_ptr!(backing_close, 229, 2, u32);

/// Ends the registration of a file for passthrough (`FUSE_DEV_IOC_BACKING_CLOSE` of linux/fuse.h); one that has ended
/// already is left alone.
pub(crate) fn unregister(device: &File, number: u32) {
    // SAFETY: the call reads one number, which lives; which registrations there are is the kernel's own.
    match unsafe { backing_close(device.as_raw_fd(), &raw const number) } {
        Ok(_) | Err(nix::errno::Errno::ENOENT) => {}
        // On kernels without passthrough there is none.
        Err(error) => tracing::debug!(%error, "no registration to end"),
    }
}

/// Has the allocator keep as many heaps as the machine has processors, instead of eight times as many: buffers of some MiB
/// are freed by other threads than they came from, and each heap keeps what it had at its peak. To be called before
/// threads are started. A backup to S3 took 310 MiB instead of 520 on two processors, and no longer.
pub fn bound_heaps() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
        let heaps = nix::libc::c_int::try_from(processors).unwrap_or(nix::libc::c_int::MAX);
        // SAFETY: the call sets a number of the allocator under its own lock. If it refuses, all is as before.
        unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, heaps) };
    }
}
