//! Restoring: the data directory of a new cluster's first hub, from a snapshot of one that is lost.
//!
//! | what | becomes |
//! |---|---|
//! | authority, data key | the snapshot's: agents, users and Secrets go on |
//! | cluster | a new one: hubs of the lost one cannot take part |
//! | the hub's number | the time in seconds, which no number that was ever given out reaches |
//! | revision | the time in microseconds, and at least 10⁹ above the snapshot's; every object is at it |
//! | epoch | the time in milliseconds, and above the snapshot's: agents turn away from hubs of an earlier one |
//! | hubs, join tokens | are not taken over; hubs below the new number are denied |
//! | datasets whose sources were listed | are listed again, for their sources may have changed since |
//!
//! That times are above counters holds because no counter grows as fast as its clock: revisions count transactions, of
//! which there are far fewer than a million a second; and it holds again when the same snapshot is restored twice.
//!
//! Invariants: a directory appears whole, by one rename, or not at all; the file is read to its end before anything is
//! made.
//!
//! Deliberately absent: finding out whether the lost hubs are really lost.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fluvial_certs::Authority;
use fluvial_certs::authority::LEAF_LIFETIME;
use fluvial_model::kinds::{Dataset, JoinToken};
use fluvial_model::manifest::BlockHash;
use fluvial_model::resource::Resource as _;
use fluvial_model::store::Revision;
use fluvial_model::upkeep::rescan;
use fluvial_proto::v1;
use fluvial_proto::v1::snapshot_record::Record;
use fluvial_raft::{Seed, Seeding};
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::Value;
use zeroize::Zeroizing;

use super::SnapshotError;
use super::format::{Contents, Reader, inspect};
use crate::blocks::Blocks;
use crate::clock::{Clock as _, SystemClock, fresh_uid};
use crate::enrol::join::{AdmittedHub, HUBS, NEXT_HUB_KEY, hub_key};
use crate::enrol::revocations::{HUBS_BELOW, hubs_below};
use crate::recovery::{RECOVERY_KEY, Recovery};
use crate::run::home::{Home, HubRecord};
use crate::run::{self, RunError};
use crate::sessions::EPOCH_KEY;

/// How far above the snapshot's revision the new one is at least, if the clock is wrong: a day of 10,000 writes a second.
const LEAST_JUMP: u64 = 1_000_000_000;

/// How to restore a hub.
#[derive(Debug)]
pub struct RestoreOptions {
    pub file: PathBuf,
    pub password: SecretString,
    /// A directory that does not exist, or is empty.
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`; the address that it listens on if not said.
    pub advertise: Option<String>,
    /// How long agents keep what this hub does not know, from its first start on.
    pub settle: Duration,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    pub record: HubRecord,
    pub contents: Contents,
    pub revision: u64,
    pub epoch: u64,
}

/// Makes the first hub of a new cluster from a snapshot.
///
/// # Errors
/// A file that is not whole or not readable with this password, a directory that holds something, and what the disk
/// says. Then nothing was made.
pub fn restore(options: RestoreOptions) -> Result<RestoreReport, SnapshotError> {
    let advertise = run::advertised(options.advertise.clone(), options.listen)?;
    let contents = inspect(&options.file)?;
    let key = contents.header.key.derive(&options.password)?;
    let mut reader = Reader::open(&options.file, &contents, &key)?;
    let Some(Record::Keys(keys)) = reader.record()? else {
        return Err(SnapshotError::damaged("it does not begin with its keys"));
    };
    let place = &options.data_dir;
    let write = |source| SnapshotError::Write { path: place.clone(), source };
    if place.exists() && std::fs::read_dir(place).map_err(write)?.next().is_some() {
        return Err(SnapshotError::Taken { path: place.clone() });
    }
    // Beside the place, so that it can be renamed to it; it goes if anything fails.
    let beside = place.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(beside).map_err(write)?;
    let staging = tempfile::Builder::new().prefix(".fluvial-restore-").tempdir_in(beside).map_err(write)?;
    let restored = Restoring::begin(&contents, staging.path(), advertise)?.run(&mut reader, &keys, &options)?;
    sync_all(staging.path()).map_err(write)?;
    let staged = staging.keep();
    if let Err(source) = std::fs::rename(&staged, place) {
        // The error says more than that the rest could not be removed.
        let _ = std::fs::remove_dir_all(&staged);
        return Err(write(source));
    }
    File::open(beside).and_then(|beside| beside.sync_all()).map_err(write)?;
    let (record, revision, epoch) = restored;
    Ok(RestoreReport { record, contents, revision, epoch })
}

/// What only grows, all of it above what it was, at `now`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Above {
    revision: u64,
    epoch: u64,
    hub: u64,
}

impl Above {
    fn snapshot(revision: u64, epoch: u64, now: Timestamp) -> Self {
        let at = |number: i64| u64::try_from(number).unwrap_or_default();
        Self {
            revision: at(now.as_microsecond()).max(revision.saturating_add(LEAST_JUMP)),
            epoch: at(now.as_millisecond()).max(epoch.saturating_add(1)),
            hub: at(now.as_second()),
        }
    }
}

struct Restoring {
    above: Above,
    now: Timestamp,
    home: Home,
    cluster: String,
    advertise: String,
    seeding: Seeding,
    /// The snapshot's number of the next hub.
    next_hub: u64,
}

impl Restoring {
    fn begin(contents: &Contents, staging: &Path, advertise: String) -> Result<Self, SnapshotError> {
        let now = SystemClock.now();
        let above = Above::snapshot(contents.header.revision, contents.header.epoch, now);
        let (home, cluster) = (Home::new(staging), fresh_uid());
        let seed = Seed {
            dir: home.store(),
            node_id: above.hub,
            cluster_id: cluster.clone(),
            address: advertise.clone(),
            revision: Revision(above.revision),
        };
        Ok(Self { above, now, home, cluster, advertise, seeding: Seeding::begin(seed)?, next_hub: 0 })
    }

    fn run(
        mut self,
        reader: &mut Reader,
        keys: &v1::SnapshotKeys,
        options: &RestoreOptions,
    ) -> Result<(HubRecord, u64, u64), SnapshotError> {
        let authority = Authority::from_pem(&keys.ca, &keys.ca_key.clone().into())
            .map_err(|error| SnapshotError::damaged(format!("its authority: {error}")))?;
        let data_key = keys.data_key.as_ref().try_into().map(Zeroizing::new);
        let data_key = data_key.map_err(|_| SnapshotError::damaged("its data key has another length"))?;
        self.home.write_authority(&authority).map_err(RunError::Home)?;
        self.home.write_data_key(&data_key).map_err(RunError::Home)?;
        let blocks = Blocks::open(&self.home.blocks())?;
        while let Some(record) = reader.record()? {
            match record {
                Record::Object(object) => self.object(&object)?,
                Record::Block(block) => {
                    let hash = <[u8; 32]>::try_from(block.hash.as_ref()).map(BlockHash::from_bytes);
                    let hash = hash.map_err(|_| SnapshotError::damaged("a block's name has another length"))?;
                    blocks.put_unsynced(hash, &block.data)?;
                }
                Record::Keys(_) => return Err(SnapshotError::damaged("it holds keys twice")),
            }
        }
        self.finish(&authority, options)
    }

    fn object(&mut self, object: &v1::SnapshotObject) -> Result<(), SnapshotError> {
        let key = object.key.as_str();
        if key == NEXT_HUB_KEY {
            let number = std::str::from_utf8(&object.value).ok().and_then(|text| text.parse().ok());
            self.next_hub = number.ok_or_else(|| SnapshotError::damaged(format!("{key} holds no number")))?;
            return Ok(());
        }
        let left_out = [EPOCH_KEY, RECOVERY_KEY, HUBS_BELOW].contains(&key)
            || key.starts_with(HUBS)
            // One that was used since would be good a second time.
            || key.starts_with(&JoinToken::INFO.prefix());
        if left_out {
            return Ok(());
        }
        let value = if key.starts_with(&Dataset::INFO.prefix()) {
            listed_again(&object.value, self.above.epoch)
                .ok_or_else(|| SnapshotError::damaged(format!("the dataset at {key} cannot be read")))?
        } else {
            object.value.to_vec()
        };
        Ok(self.seeding.put(key, &value)?)
    }

    fn finish(
        mut self,
        authority: &Authority,
        options: &RestoreOptions,
    ) -> Result<(HubRecord, u64, u64), SnapshotError> {
        let Above { revision, epoch, hub } = self.above;
        if self.next_hub > hub {
            return Err(SnapshotError::damaged(format!(
                "its hubs are numbered up to {}, beyond this machine's clock: set the clock",
                self.next_hub
            )));
        }
        let record = HubRecord {
            node_id: hub,
            cluster_id: self.cluster,
            listen: options.listen,
            advertise: self.advertise.clone(),
            first: false,
            etcd: None,
        };
        let own = AdmittedHub { id: hub, address: self.advertise, token: String::new(), leaving: false };
        let recovery = Recovery { settle_seconds: options.settle.as_secs(), until: None };
        self.seeding.put(&hub_key(hub), &to_json(&own)?)?;
        self.seeding.put(NEXT_HUB_KEY, (hub + 1).to_string().as_bytes())?;
        self.seeding.put(HUBS_BELOW, &hubs_below(hub))?;
        self.seeding.put(RECOVERY_KEY, &to_json(&recovery)?)?;
        self.seeding.put(EPOCH_KEY, epoch.to_string().as_bytes())?;
        self.seeding.finish()?;
        run::issue(&self.home, authority, &record, self.now, LEAF_LIFETIME)?;
        self.home.write_record(&record).map_err(RunError::Home)?;
        Ok((record, revision, epoch))
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, SnapshotError> {
    serde_json::to_vec(value).map_err(|error| SnapshotError::damaged(error.to_string()))
}

/// The dataset with a request for a listing, if it was ever listed; nothing if it cannot be read.
fn listed_again(stored: &[u8], epoch: u64) -> Option<Vec<u8>> {
    let mut dataset: Value = serde_json::from_slice(stored).ok()?;
    if dataset.pointer("/status/root").is_none_or(Value::is_null) {
        return Some(stored.to_vec());
    }
    let metadata = dataset.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(serde_json::Map::new()));
    annotations.as_object_mut()?.insert(rescan::REQUESTED.to_owned(), format!("restored-{epoch}").into());
    serde_json::to_vec(&dataset).ok()
}

/// Waits until everything in the file system of `directory` is on the disk: one call for many small files.
fn sync_all(directory: &Path) -> io::Result<()> {
    nix::unistd::syncfs(File::open(directory)?).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_above_what_was_ever_given_out_also_when_a_snapshot_is_restored_twice() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let first = Above::snapshot(500, 1, at(0));
        assert_eq!(first, Above { revision: 1_800_000_000_000_000, epoch: 1_800_000_000_000, hub: 1_800_000_000 });
        let second = Above::snapshot(500, 1, at(1));
        assert!(second.revision > first.revision && second.epoch > first.epoch && second.hub > first.hub);
        let of_the_second = Above::snapshot(second.revision + 7, second.epoch, at(2));
        assert!(of_the_second.revision > second.revision + 7 && of_the_second.epoch > second.epoch);
        let wrong_clock = Above::snapshot(second.revision, second.epoch, Timestamp::UNIX_EPOCH);
        assert_eq!(wrong_clock.revision, second.revision + LEAST_JUMP);
        assert_eq!(wrong_clock.epoch, second.epoch + 1);
    }

    #[test]
    fn a_dataset_that_was_listed_is_listed_again_and_nothing_else_of_it_changes() {
        let never = br#"{"metadata":{"name":"d"},"spec":{}}"#;
        assert_eq!(listed_again(never, 7).unwrap(), never);
        let once = br#"{"metadata":{"name":"d","annotations":{"a":"b"}},"status":{"root":"x"}}"#;
        let again: Value = serde_json::from_slice(&listed_again(once, 7).unwrap()).unwrap();
        let mut expected: Value = serde_json::from_slice(once).unwrap();
        expected["metadata"]["annotations"][rescan::REQUESTED] = "restored-7".into();
        assert_eq!(again, expected);
        assert!(listed_again(b"no json", 7).is_none());
    }
}
