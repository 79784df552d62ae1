//! Several homes as one, each at its path: what lies at or below the path is the home's, what lies above is only the way.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use fluvial_model::manifest::RelativePath;
use nix::libc;

use crate::write::home::{Attr, Changes, Home, How, Kind, Listed, Maker, OpenFile, Space, errno};

/// Inode numbers of different homes differ in the bits above.
const NUMBER_BITS: u32 = 56;
/// Permission bits of a directory that is only the way to a home.
const WAY_MODE: u32 = 0o555;

/// One of them.
pub struct Placed {
    /// Where it appears; no other lies at or inside it.
    pub path: RelativePath,
    /// The home.
    pub home: Arc<dyn Home>,
    /// Nothing may be changed in it.
    pub read_only: bool,
}

/// All of them, as one home.
pub struct Homes {
    placed: Vec<Placed>,
    since: SystemTime,
}

/// Where a path leads.
enum Found<'h> {
    Home(usize, &'h Placed, RelativePath),
    /// To this many homes further down.
    Way,
}

impl Homes {
    /// These homes, of which none lies inside another.
    #[must_use]
    pub fn new(placed: Vec<Placed>) -> Self {
        Self { placed, since: SystemTime::now() }
    }

    fn find(&self, path: &RelativePath) -> io::Result<Found<'_>> {
        for (index, placed) in self.placed.iter().enumerate() {
            if let Some(inside) = path.strip_prefix(&placed.path) {
                return Ok(Found::Home(index, placed, inside));
            }
        }
        let way = self.placed.iter().any(|placed| placed.path.strip_prefix(path).is_some());
        if way { Ok(Found::Way) } else { Err(errno(libc::ENOENT)) }
    }

    /// The home in which something is to be changed.
    fn writable(&self, path: &RelativePath) -> io::Result<(&Placed, RelativePath)> {
        match self.find(path) {
            Ok(Found::Home(_, placed, inside)) if !placed.read_only => Ok((placed, inside)),
            // Beside the homes, and on the way to them, there is nobody to keep it.
            _ => Err(errno(libc::EROFS)),
        }
    }

    /// The home in which a name is to be changed, which the root of a home does not have there.
    fn named(&self, path: &RelativePath) -> io::Result<(&Placed, RelativePath)> {
        let (placed, inside) = self.writable(path)?;
        if inside.is_root() { Err(errno(libc::EBUSY)) } else { Ok((placed, inside)) }
    }

    fn way(&self, path: &RelativePath) -> Attr {
        let hash = fluvial_model::manifest::Digest::of(path.as_str().as_bytes());
        let number = hash.to_string().get(..14).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(1);
        Attr {
            number: tagged(usize::from(u8::MAX), number),
            identity: 0,
            kind: Kind::Directory,
            size: 0,
            blocks: 0,
            mode: WAY_MODE,
            links: 2,
            owner: (0, 0),
            accessed: self.since,
            modified: self.since,
            changed: self.since,
        }
    }
}

fn tagged(index: usize, number: u64) -> u64 {
    number ^ (u64::try_from(index).unwrap_or(0) << NUMBER_BITS)
}

impl Home for Homes {
    fn stat(&self, path: &RelativePath) -> io::Result<Attr> {
        match self.find(path)? {
            Found::Home(index, placed, inside) => {
                let attr = placed.home.stat(&inside)?;
                Ok(Attr { number: tagged(index, attr.number), ..attr })
            }
            Found::Way => Ok(self.way(path)),
        }
    }

    fn list(&self, path: &RelativePath) -> io::Result<Vec<Listed>> {
        match self.find(path)? {
            Found::Home(index, placed, inside) => {
                let listed = placed.home.list(&inside)?.into_iter();
                Ok(listed.map(|listed| Listed { number: tagged(index, listed.number), ..listed }).collect())
            }
            Found::Way => {
                let mut names = BTreeMap::new();
                for placed in &self.placed {
                    let next = placed.path.strip_prefix(path);
                    if let Some(name) = next.as_ref().and_then(|next| next.components().next()) {
                        let child = path.join(name).map_err(|_| errno(libc::ENAMETOOLONG))?;
                        names.insert(name.to_owned(), self.way(&child).number);
                    }
                }
                let entry = |(name, number)| Listed { name, kind: Kind::Directory, number };
                Ok(names.into_iter().map(entry).collect())
            }
        }
    }

    fn open(&self, path: &RelativePath, how: How) -> io::Result<Arc<dyn OpenFile>> {
        if how.write || how.truncate {
            let (placed, inside) = self.writable(path)?;
            return placed.home.open(&inside, how);
        }
        match self.find(path)? {
            Found::Home(_, placed, inside) => placed.home.open(&inside, how),
            Found::Way => Err(errno(libc::EISDIR)),
        }
    }

    fn create(&self, path: &RelativePath, maker: Maker, how: How) -> io::Result<Arc<dyn OpenFile>> {
        let (placed, inside) = self.named(path)?;
        placed.home.create(&inside, maker, how)
    }

    fn make_directory(&self, path: &RelativePath, maker: Maker) -> io::Result<()> {
        let (placed, inside) = self.named(path)?;
        placed.home.make_directory(&inside, maker)
    }

    fn make_link(&self, path: &RelativePath, target: &str, maker: Maker) -> io::Result<()> {
        let (placed, inside) = self.named(path)?;
        placed.home.make_link(&inside, target, maker)
    }

    fn read_link(&self, path: &RelativePath) -> io::Result<String> {
        match self.find(path)? {
            Found::Home(_, placed, inside) => placed.home.read_link(&inside),
            Found::Way => Err(errno(libc::EINVAL)),
        }
    }

    fn unlink(&self, path: &RelativePath) -> io::Result<()> {
        let (placed, inside) = self.named(path)?;
        placed.home.unlink(&inside)
    }

    fn remove_directory(&self, path: &RelativePath) -> io::Result<()> {
        let (placed, inside) = self.named(path)?;
        placed.home.remove_directory(&inside)
    }

    fn rename(&self, from: &RelativePath, to: &RelativePath, replace: bool) -> io::Result<()> {
        let (placed, from) = self.named(from)?;
        let (other, to) = self.named(to)?;
        if !Arc::ptr_eq(&placed.home, &other.home) {
            return Err(errno(libc::EXDEV));
        }
        placed.home.rename(&from, &to, replace)
    }

    fn change(&self, path: &RelativePath, changes: &Changes) -> io::Result<()> {
        let (placed, inside) = self.writable(path)?;
        placed.home.change(&inside, changes)
    }

    fn sync_directory(&self, path: &RelativePath) -> io::Result<()> {
        match self.find(path)? {
            Found::Home(_, placed, inside) => placed.home.sync_directory(&inside),
            Found::Way => Ok(()),
        }
    }

    /// Of the first one: a number for all of them would be nobody's.
    fn space(&self) -> io::Result<Space> {
        self.placed.first().map_or_else(|| Ok(Space::default()), |placed| placed.home.space())
    }
}
