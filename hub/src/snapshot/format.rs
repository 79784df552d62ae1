//! What a snapshot's file looks like.
//!
//! ```text
//! "fluvial-snapshot"  format: u16  length: u32  header: JSON     what may be known without the password
//! { length: u32  ciphertext }*     0: u32                        records, compressed (zstd), in pieces of at most 1 MiB
//! length: u32  footer: JSON                                      how much it is
//! BLAKE3 of everything before                                    32 bytes, and then the file ends
//! ```
//! Numbers are little-endian. Each piece is sealed by XChaCha20-Poly1305 under the key of [`super::key`], in the manner of
//! STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015): its nonce is the file's 15 random bytes, the piece's number in 8
//! and whether it is the last in one; what is authenticated beside it is the digest of all before the pieces and, for
//! the last one, the footer. So pieces cannot be left out, moved, or taken from another file, and header and footer
//! cannot be changed, by whoever lacks the password. The BLAKE3 at the end tells damage without it.
//!
//! Invariants: a writer that is not [finished](Writer::finish) leaves a file that nobody takes for whole; a reader gives
//! out nothing that was not authenticated; lengths are checked before memory is taken for them.
//!
//! Deliberately absent: what the records mean.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use fluvial_proto::v1;
use fluvial_proto::v1::snapshot_record::Record;
use jiff::Timestamp;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::SnapshotError;
use super::key::{Derivation, KEY_BYTES};

/// The newest format that this version reads, and the one that it writes.
pub const FORMAT: u16 = 1;
const MAGIC: &[u8; 16] = b"fluvial-snapshot";
/// The longest header or footer: some hundred bytes are needed.
const MAX_TEXT: u32 = 64 * 1024;
const PIECE: usize = 1 << 20;
const TAG: usize = 16;
const NONCE_PREFIX: usize = 15;
const DIGEST: usize = 32;
/// The longest record: the store's largest transaction (2 MiB), a key, and what surrounds them.
const MAX_RECORD: u64 = 4 << 20;
/// A fast level: catalogs shrink to a tenth by it.
const LEVEL: i32 = 3;

/// What is said of a snapshot in front, for everybody to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Which version of Fluvial wrote it.
    pub fluvial: String,
    pub created: Timestamp,
    pub trust_domain: String,
    /// The id of the cluster of hubs that it was taken of.
    pub cluster: String,
    /// Everything in it is as it was at this revision.
    pub revision: u64,
    pub epoch: u64,
    pub key: Derivation,
    /// Base64.
    pub nonce: String,
}

/// What is said of a snapshot at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Footer {
    /// Keys of the store.
    pub objects: u64,
    /// Blocks of manifests.
    pub blocks: u64,
    /// Blocks that no hub had any more.
    pub missing_blocks: u64,
    /// Bytes of the records, neither compressed nor encrypted.
    pub bytes: u64,
}

/// A snapshot that was read to its end and is whole.
#[derive(Debug, Clone)]
pub struct Contents {
    pub format: u16,
    pub header: Header,
    pub footer: Footer,
    /// Of the file.
    pub bytes: u64,
    /// The BLAKE3 at its end.
    pub digest: blake3::Hash,
    footer_text: Vec<u8>,
}

/// Seals pieces, or opens them.
struct Seal {
    cipher: XChaCha20Poly1305,
    prefix: [u8; NONCE_PREFIX],
    /// The digest of everything before the pieces.
    head: blake3::Hash,
    next: u64,
}

impl Seal {
    fn new(key: &Zeroizing<[u8; KEY_BYTES]>, header: &Header, head: blake3::Hash) -> Result<Self, SnapshotError> {
        let prefix = STANDARD.decode(&header.nonce).ok().and_then(|bytes| bytes.try_into().ok());
        let prefix = prefix.ok_or_else(|| SnapshotError::damaged("its nonce must be 15 bytes in base64"))?;
        Ok(Self { cipher: XChaCha20Poly1305::new(&(**key).into()), prefix, head, next: 0 })
    }

    /// The nonce of the next piece, and what is authenticated beside it; `footer` is there for the last.
    fn turn(&mut self, footer: Option<&[u8]>) -> (XNonce, Vec<u8>) {
        let mut nonce = [0; 24];
        nonce[..NONCE_PREFIX].copy_from_slice(&self.prefix);
        nonce[NONCE_PREFIX..23].copy_from_slice(&self.next.to_le_bytes());
        nonce[23] = u8::from(footer.is_some());
        self.next += 1;
        let mut beside = self.head.as_bytes().to_vec();
        beside.extend_from_slice(footer.unwrap_or_default());
        (nonce.into(), beside)
    }

    fn seal(&mut self, piece: &[u8], footer: Option<&[u8]>) -> io::Result<Vec<u8>> {
        let (nonce, aad) = self.turn(footer);
        let sealed = self.cipher.encrypt(&nonce, Payload { msg: piece, aad: &aad });
        sealed.map_err(|_| io::Error::other("a piece of the snapshot cannot be encrypted"))
    }

    fn open(&mut self, piece: &[u8], footer: Option<&[u8]>) -> Option<Vec<u8>> {
        let (nonce, aad) = self.turn(footer);
        self.cipher.decrypt(&nonce, Payload { msg: piece, aad: &aad }).ok()
    }
}

/// Writes and digests.
struct Digesting<W> {
    to: W,
    digest: blake3::Hasher,
}

impl<W: Write> Digesting<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.to.write_all(bytes)
    }

    fn put_with_length(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.put(&length.to_le_bytes())?;
        self.put(bytes)
    }
}

/// Gathers pieces and seals each when more follows.
struct Sealing<W> {
    to: Digesting<W>,
    seal: Seal,
    piece: Vec<u8>,
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE {
            let sealed = self.seal.seal(&self.piece, None)?;
            self.to.put_with_length(&sealed)?;
            self.piece.clear();
        }
        let fits = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a snapshot, record by record.
pub struct Writer<W: Write> {
    to: zstd::Encoder<'static, Sealing<W>>,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// What `to` says.
    pub fn begin(to: W, header: &Header, key: &Zeroizing<[u8; KEY_BYTES]>) -> io::Result<Self> {
        let mut to = Digesting { to, digest: blake3::Hasher::new() };
        to.put(MAGIC)?;
        to.put(&FORMAT.to_le_bytes())?;
        to.put_with_length(&serde_json::to_vec(header)?)?;
        let seal = Seal::new(key, header, to.digest.finalize()).map_err(io::Error::other)?;
        let sealing = Sealing { to, seal, piece: Vec::with_capacity(PIECE) };
        Ok(Self { to: zstd::Encoder::new(sealing, LEVEL)?, bytes: 0 })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// What the other end says.
    pub fn put(&mut self, record: Record) -> io::Result<()> {
        // It may hold keys.
        let bytes = Zeroizing::new(v1::SnapshotRecord { record: Some(record) }.encode_length_delimited_to_vec());
        self.bytes += bytes.len() as u64;
        self.to.write_all(&bytes)
    }

    /// Makes the snapshot whole. What `footer` says of bytes is filled in.
    ///
    /// # Errors
    /// What the other end says.
    pub fn finish(self, footer: Footer) -> io::Result<W> {
        let footer = serde_json::to_vec(&Footer { bytes: self.bytes, ..footer })?;
        let Sealing { mut to, mut seal, piece } = self.to.finish()?;
        let sealed = seal.seal(&piece, Some(&footer))?;
        to.put_with_length(&sealed)?;
        to.put(&0_u32.to_le_bytes())?;
        to.put_with_length(&footer)?;
        let digest = to.digest.finalize();
        to.to.write_all(digest.as_bytes())?;
        to.to.flush()?;
        Ok(to.to)
    }
}

/// A header for a snapshot that is taken now.
#[must_use]
pub fn header(
    key: Derivation,
    created: Timestamp,
    (trust_domain, cluster): (String, String),
    (revision, epoch): (u64, u64),
) -> Header {
    let nonce = STANDARD.encode(rand::random::<[u8; NONCE_PREFIX]>());
    Header {
        fluvial: env!("CARGO_PKG_VERSION").to_owned(),
        created,
        trust_domain,
        cluster,
        revision,
        epoch,
        key,
        nonce,
    }
}

/// Reads and digests.
struct Taking<R> {
    from: R,
    digest: blake3::Hasher,
    bytes: u64,
}

impl<R: Read> Taking<R> {
    fn new(from: R) -> Self {
        Self { from, digest: blake3::Hasher::new(), bytes: 0 }
    }

    fn take(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut taken = vec![0; bytes];
        self.from.read_exact(&mut taken)?;
        self.digest.update(&taken);
        self.bytes += bytes as u64;
        Ok(taken)
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn text(&mut self, what: &str) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        if length > MAX_TEXT {
            return Err(damaged(format!("its {what} cannot have {length} bytes")));
        }
        self.take(length as usize)
    }

    /// The next piece as it was sealed; none after the last.
    fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.number()? as usize {
            0 => Ok(None),
            length if length <= PIECE + TAG => self.take(length).map(Some),
            length => Err(damaged(format!("a piece cannot have {length} bytes"))),
        }
    }

    /// Everything before the pieces.
    fn head(&mut self) -> io::Result<(u16, Header)> {
        let mut magic = [0; MAGIC.len()];
        match self.from.read_exact(&mut magic) {
            Ok(()) if magic == *MAGIC => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            // Too short to tell, or something else.
            _ => return Err(io::Error::other(SnapshotError::NotASnapshot)),
        }
        self.digest.update(&magic);
        self.bytes += magic.len() as u64;
        let format = self.take(2)?;
        let format = u16::from_le_bytes([format[0], format[1]]);
        if format > FORMAT {
            return Err(io::Error::other(SnapshotError::Newer { found: format }));
        }
        let text = self.text("header")?;
        let header = serde_json::from_slice(&text).map_err(|error| damaged(format!("its header: {error}")))?;
        Ok((format, header))
    }
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::other(SnapshotError::damaged(what))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError + '_ {
    |error| SnapshotError::from_io(error, |source| SnapshotError::Read { path: path.to_owned(), source })
}

/// Reads a snapshot to its end without opening it, and says what it is.
///
/// # Errors
/// A file that is no snapshot, of a newer format, cut off or damaged.
pub fn inspect(path: &Path) -> Result<Contents, SnapshotError> {
    let file = File::open(path).map_err(|source| SnapshotError::Read { path: path.to_owned(), source })?;
    read_all(&mut Taking::new(BufReader::new(file))).map_err(failed(path))
}

fn read_all(file: &mut Taking<impl Read>) -> io::Result<Contents> {
    let (format, header) = file.head()?;
    while file.piece()?.is_some() {}
    let footer_text = file.text("footer")?;
    let digest = file.digest.finalize();
    let mut written = [0; DIGEST];
    file.from.read_exact(&mut written)?;
    if digest != written {
        return Err(damaged("its checksum does not fit"));
    }
    if file.from.read(&mut [0])? != 0 {
        return Err(damaged("something follows after its end"));
    }
    let footer = serde_json::from_slice(&footer_text).map_err(|error| damaged(format!("its footer: {error}")))?;
    Ok(Contents { format, header, footer, bytes: file.bytes + DIGEST as u64, digest, footer_text })
}

/// Opens pieces and gives out what is in them.
struct Opening<R> {
    from: Taking<R>,
    seal: Seal,
    footer: Vec<u8>,
    /// The piece after the one in `open`, as it was sealed.
    next: Option<Vec<u8>>,
    open: Vec<u8>,
    read: usize,
}

impl<R: Read> Opening<R> {
    fn advance(&mut self) -> io::Result<bool> {
        let Some(sealed) = self.next.take() else { return Ok(false) };
        self.next = self.from.piece()?;
        let first = self.seal.next == 0;
        let footer = self.next.is_none().then_some(self.footer.as_slice());
        // The checksum fits: what does not open at the first piece was sealed with another password.
        let wrong = || if first { SnapshotError::Password } else { SnapshotError::damaged("a piece is not its own") };
        self.open = self.seal.open(&sealed, footer).ok_or_else(|| io::Error::other(wrong()))?;
        self.read = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.open.len() {
            if !self.advance()? {
                return Ok(0);
            }
        }
        let bytes = into.len().min(self.open.len() - self.read);
        into[..bytes].copy_from_slice(&self.open[self.read..self.read + bytes]);
        self.read += bytes;
        Ok(bytes)
    }
}

/// Reads the records of a snapshot that [`inspect`] found whole.
pub struct Reader {
    from: BufReader<zstd::Decoder<'static, BufReader<Opening<BufReader<File>>>>>,
    path: std::path::PathBuf,
}

impl Reader {
    /// Opens the snapshot at `path`, of which `contents` was found.
    ///
    /// # Errors
    /// A key that is not its own, and what the disk says.
    pub fn open(path: &Path, contents: &Contents, key: &Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, SnapshotError> {
        let open = || {
            let mut from = Taking::new(BufReader::new(File::open(path)?));
            let (_, header) = from.head()?;
            if header != contents.header {
                return Err(damaged("it was changed while it was read"));
            }
            let seal = Seal::new(key, &header, from.digest.finalize()).map_err(io::Error::other)?;
            let next = from.piece()?;
            let footer = contents.footer_text.clone();
            let mut opening = Opening { from, seal, footer, next, open: Vec::new(), read: 0 };
            // Now, so that a wrong password is found before anything is made.
            opening.advance()?;
            Ok(BufReader::new(zstd::Decoder::new(opening)?))
        };
        Ok(Self { from: open().map_err(failed(path))?, path: path.to_owned() })
    }

    /// The next record; none at the end.
    ///
    /// # Errors
    /// A record that a newer version wrote, damage, and what the disk says.
    pub fn record(&mut self) -> Result<Option<Record>, SnapshotError> {
        let Some(length) = self.length().map_err(failed(&self.path))? else { return Ok(None) };
        if length > MAX_RECORD {
            return Err(SnapshotError::damaged(format!("a record cannot have {length} bytes")));
        }
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).unwrap_or_default()]);
        self.from.read_exact(&mut bytes).map_err(failed(&self.path))?;
        let record = v1::SnapshotRecord::decode(bytes.as_slice());
        let record = record.map_err(|error| SnapshotError::damaged(format!("a record cannot be read: {error}")))?;
        let unknown = || SnapshotError::damaged("it holds a record of a kind that this version does not know");
        record.record.map(Some).ok_or_else(unknown)
    }

    /// A length as protobuf writes it; none at the end.
    fn length(&mut self) -> io::Result<Option<u64>> {
        let mut length = 0_u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            if self.from.read(&mut byte)? == 0 {
                return if shift == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            length |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(Some(length));
            }
        }
        Err(damaged("the length of a record has no end"))
    }
}

#[cfg(test)]
mod tests;
