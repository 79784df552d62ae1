//! Files without room: read from their source, ahead of who reads on.
//!
//! A reader who goes on in a file is served from pieces of [`PIECE`] in memory: those that he is in, and [`AHEAD`] behind them. A
//! piece goes when all of it was read, or when there are [`PIECES`] of the file, 32 MiB. All files together have as many as
//! [`super::InFlight`] says; who finds none left, or jumps, has each read go to the source as it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};

use super::fill::Origin;
use super::{PART_BYTES, Shared};
use crate::engine::{EngineError, Through};

/// Bytes of a piece.
pub(super) const PIECE: u64 = 4 << 20;
/// Pieces that are fetched behind the one that is read.
const AHEAD: u64 = 3;
/// Pieces of one file.
const PIECES: usize = 8;
/// A jump that still counts as reading on: the kernel keeps up to 64 reads of 1 MiB under way, in any order.
const NEAR: u64 = 64 << 20;
/// Reads in a row until it is read ahead.
const ROW: u64 = 2;

/// A file that has no room in the cache.
pub(super) struct Direct {
    inner: Arc<Inner>,
    /// The pieces that are kept.
    pieces: Mutex<Vec<Arc<Piece>>>,
    expected: AtomicU64,
    row: AtomicU64,
}

struct Inner {
    shared: Arc<Shared>,
    origin: Box<Origin>,
}

/// A piece, fetched once however many want it.
struct Piece {
    number: u64,
    contents: OnceCell<Bytes>,
    /// Bytes that readers have had.
    served: AtomicU64,
    _room: OwnedSemaphorePermit,
}

impl Inner {
    async fn read(&self, offset: u64, length: u64) -> Result<Bytes, EngineError> {
        let _turn = self.shared.turn(length).await?;
        let data = self.origin.read(offset, length).await?;
        if data.len() as u64 == length { Ok(data) } else { Err(self.origin.differs("it is shorter")) }
    }

    fn length(&self, piece: &Piece) -> u64 {
        PIECE.min(self.origin.file.bytes - piece.number * PIECE)
    }

    async fn piece<'a>(&self, piece: &'a Piece) -> Result<&'a Bytes, EngineError> {
        piece.contents.get_or_try_init(|| self.read(piece.number * PIECE, self.length(piece))).await
    }
}

impl Direct {
    pub(super) fn new(shared: Arc<Shared>, origin: Box<Origin>) -> Self {
        let inner = Arc::new(Inner { shared, origin });
        Self { inner, pieces: Mutex::default(), expected: AtomicU64::new(0), row: AtomicU64::new(0) }
    }

    fn pieces(&self) -> MutexGuard<'_, Vec<Arc<Piece>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the reader goes on where he was, now that he reads up to `end`.
    fn reads_on(&self, offset: u64, end: u64) -> bool {
        let expected = self.expected.swap(end, Ordering::Relaxed);
        let on = offset <= expected.saturating_add(NEAR) && offset.saturating_add(NEAR) >= expected;
        if !on {
            self.row.store(0, Ordering::Relaxed);
            self.pieces().clear();
            return false;
        }
        self.row.fetch_add(1, Ordering::Relaxed) + 1 >= ROW
    }

    /// The piece that holds an offset, with those behind it begun; `None` if there is no room for it.
    fn piece_at(&self, offset: u64) -> Option<Arc<Piece>> {
        let number = offset / PIECE;
        let last = (self.inner.origin.file.bytes - 1) / PIECE;
        let mut pieces = self.pieces();
        for wanted in number..=last.min(number + AHEAD) {
            if pieces.iter().any(|piece| piece.number == wanted) {
                continue;
            }
            if pieces.len() >= PIECES {
                // Skipped, or read ahead for nothing.
                let Some(behind) = pieces.iter().position(|piece| piece.number < number) else { break };
                pieces.remove(behind);
            }
            let Ok(room) = self.inner.shared.pieces.clone().try_acquire_owned() else { break };
            let (contents, served) = (OnceCell::new(), AtomicU64::new(0));
            let piece = Arc::new(Piece { number: wanted, contents, served, _room: room });
            pieces.push(piece.clone());
            if wanted > number {
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    // Its failure is nobody's: who reads it asks again, and hears of it.
                    if let Err(error) = inner.piece(&piece).await {
                        tracing::debug!(error = &error as &dyn std::error::Error, "not read ahead");
                    }
                });
            }
        }
        pieces.iter().find(|piece| piece.number == number).cloned()
    }
}

#[async_trait]
impl Through for Direct {
    async fn read(&self, offset: u64, length: u64) -> Result<Bytes, EngineError> {
        let length = length.min(self.inner.origin.file.bytes.saturating_sub(offset));
        if length == 0 {
            return Ok(Bytes::new());
        }
        let border = PIECE - offset % PIECE;
        if length > border && length <= PIECE {
            let first = self.read(offset, border).await?;
            let second = self.read(offset + border, length - border).await?;
            return Ok([first, second].concat().into());
        }
        if self.reads_on(offset, offset + length)
            && length <= border
            && let Some(piece) = self.piece_at(offset)
        {
            let contents = self.inner.piece(&piece).await?;
            if piece.served.fetch_add(length, Ordering::Relaxed) + length >= self.inner.length(&piece) {
                self.pieces().retain(|kept| kept.number != piece.number);
            }
            let from = usize::try_from(offset % PIECE).unwrap_or(usize::MAX);
            return Ok(contents.slice(from..from + usize::try_from(length).unwrap_or(usize::MAX)));
        }
        self.inner.read(offset, length).await
    }
}

impl Shared {
    /// Waits until so many more bytes may be in memory. Bytes count by parts, so that many small files are on their way at a
    /// time, or a few large ranges.
    pub(super) async fn turn(&self, bytes: u64) -> Result<OwnedSemaphorePermit, EngineError> {
        let parts = u32::try_from(bytes.div_ceil(PART_BYTES)).unwrap_or(u32::MAX).clamp(1, self.parts);
        self.ranges.clone().acquire_many_owned(parts).await.map_err(|_| EngineError::Stopped { op: "read" })
    }
}
