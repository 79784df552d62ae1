//! What a mount process and its agent say to each other: one JSON message a packet, with open files beside some.
//!
//! The socket keeps packets apart (`SOCK_SEQPACKET`), lies in the agent's data directory, which is the agent's user's
//! alone. Of contents, the agent opens what may be opened, and the mount process gets the open file. The process of a
//! writable mount writes to homes itself, and gets the keys to them.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use fluvial_model::manifest::{RelativePath, Root};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::{AncillaryMessageReader, AncillaryMessageWriter, OwnedAncillaryMessage};

use crate::fs::Mode;
use crate::write::spec::{HomeSpec, StagingSpec};

/// Largest message: a path of 4 KiB, every byte of which JSON may write as six, and some.
const MOST_BYTES: usize = 32 << 10;
/// Room for one file beside a message.
const ANCILLARY_BYTES: usize = 64;

/// A version and the number by which inodes name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedVersion {
    /// Grows with every version of one mount.
    pub number: u32,
    /// The version.
    pub root: Root,
}

/// What the mount process says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromMount {
    /// The first message of every connection.
    Hello {
        /// Which mount it is.
        mount: String,
        /// The process.
        pid: u32,
        /// It serves the mount already: it comes back after the connection broke.
        serving: bool,
        /// The versions that it knows.
        versions: Vec<NumberedVersion>,
    },
    /// It is about to serve the mount. Beside it: the table of what is open, for a successor.
    OpenFiles,
    /// It serves the mount. Beside it: the device, by which a successor can go on.
    Serving {
        /// The kernel's first request, which it sends only once.
        init: Vec<u8>,
    },
    /// How complete files are read.
    Mode(Mode),
    /// Something was written: what the dataset holds is another version now.
    Written,
    /// Opens a file.
    Open {
        /// Names the answer.
        request: u64,
        /// The version.
        root: Root,
        /// The file.
        path: RelativePath,
    },
    /// Opens a file that the process has already, if it is complete: it is not given up then.
    Keep {
        /// Names the answer.
        request: u64,
        /// The version.
        root: Root,
        /// The file.
        path: RelativePath,
    },
    /// Asks for contents to be in the file that came with the handle.
    Fill {
        /// Names the answer.
        request: u64,
        /// The open file.
        handle: u64,
        /// From here.
        offset: u64,
        /// So many.
        length: u64,
    },
    /// Asks for contents of a file that has no room in the cache.
    Read {
        /// Names the answer.
        request: u64,
        /// The open file.
        handle: u64,
        /// From here.
        offset: u64,
        /// So many.
        length: u32,
    },
    /// Files that will be opened soon: they are fetched, and nobody waits for it.
    Ahead {
        /// The version.
        root: Root,
        /// The files.
        paths: Vec<RelativePath>,
    },
    /// Closes a file.
    Close {
        /// The open file.
        handle: u64,
    },
    /// The mount was taken away, or cannot be made; why.
    Ended {
        /// Empty if nothing went wrong.
        problem: String,
    },
}

/// What a file is, once it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenedAs {
    /// The file beside the message has it all.
    Complete,
    /// The file beside the message has what was asked for with `Fill`.
    Filling,
    /// There is no file: every range is asked for with `Read`.
    Through,
}

/// An error as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the reader sees.
    pub errno: i32,
    /// What the log says.
    pub message: String,
}

/// What the agent says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromAgent {
    /// The answer to `Hello`. Beside it, if `init` is not empty, the device of a mount that lost its process; the table of
    /// what is open follows.
    Welcome {
        /// Where to mount.
        directory: PathBuf,
        /// What mount tables show as its source.
        source: String,
        /// Where the blocks of versions are.
        blocks: PathBuf,
        /// Every version that inodes may name; the last one is current.
        versions: Vec<NumberedVersion>,
        /// The kernel's first request on the device.
        init: Vec<u8>,
        /// Of a writable mount: where files are staged, and how many homes there are; messages of them follow.
        homes: Option<(StagingSpec, usize)>,
    },
    /// A home of a writable mount.
    Home(HomeSpec),
    /// Beside it: the table of what is open on the device.
    OpenFiles,
    /// A newer version is current.
    Version(NumberedVersion),
    /// A file is open.
    Opened {
        /// The request.
        request: u64,
        /// The open file.
        handle: u64,
        /// How its contents are had.
        opened: OpenedAs,
    },
    /// What was to be filled is there.
    Filled {
        /// The request.
        request: u64,
        /// The file has everything by now.
        complete: bool,
    },
    /// The handle is of no use any more, because its file cannot be filled or because it is closed: it is to be opened again.
    /// Or a file that was to be kept is not complete.
    Lost {
        /// The request.
        request: u64,
    },
    /// Contents, in the file beside the message.
    Contents {
        /// The request.
        request: u64,
        /// Bytes in it.
        length: u32,
    },
    /// A request failed.
    Failed {
        /// The request.
        request: u64,
        /// How.
        failure: Failure,
    },
    /// The mount is to be taken away.
    Unmount,
}

/// A message, and the file that came with it.
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// The file.
    pub file: Option<OwnedFd>,
}

/// Sends one message.
///
/// # Errors
/// When the other side is gone, or the message is too long.
pub async fn send<T: Serialize>(
    socket: &UnixSeqpacket,
    message: &T,
    file: Option<&(impl AsFd + Sync)>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
    }
    let mut buffer = [0; ANCILLARY_BYTES];
    let mut ancillary = AncillaryMessageWriter::new(&mut buffer);
    if let Some(file) = file {
        ancillary.add_fds([file.as_fd()]).map_err(|_| io::Error::other("there is no room for the file"))?;
    }
    socket.send_vectored_with_ancillary(&[IoSlice::new(&bytes)], &mut ancillary).await.map(drop)
}

/// Receives one message; `None` when the other side is gone.
///
/// # Errors
/// When the socket fails or what came is no message.
pub async fn receive<T: DeserializeOwned>(socket: &UnixSeqpacket) -> io::Result<Option<Received<T>>> {
    let mut bytes = vec![0; MOST_BYTES];
    let mut buffer = [0; ANCILLARY_BYTES];
    let (info, ancillary): (_, AncillaryMessageReader<'_>) =
        socket.recv_vectored_with_ancillary(&mut [IoSliceMut::new(&mut bytes)], &mut buffer).await?;
    let length = info.bytes_read();
    let mut file = None;
    for message in ancillary.into_messages() {
        if let OwnedAncillaryMessage::FileDescriptors(files) = message {
            file = files.into_iter().next();
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&bytes[..length])?;
    Ok(Some(Received { message, file }))
}
