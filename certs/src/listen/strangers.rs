//! Connections that have not shown who they are: how many there may be, and whose turn it is.
//!
//! Whoever is in the middle of a handshake, or has no certificate, costs memory and may mean no good. An address has so
//! many of them and no more, so that it gets in nobody's way but its own. Where many addresses have too many together, the
//! oldest makes way for the newest: an honest handshake is over long before it is the oldest.
//!
//! Invariant: who has shown a certificate is not counted here.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

/// The most strangers of one address: what it takes to shake hands with 2,000 agents behind one address within
/// [`HANDSHAKE_TIMEOUT`](super::accept), at a millisecond of a core each. At about 10 KB each, 20 MB.
const PER_ADDRESS: usize = 2048;
/// The most strangers of all addresses: 40 MB.
const MAX: usize = 4096;
/// Handshakes of one address that are worked on at a time. A client that has begun one and does not end it holds its
/// turn for a while: 16 of them hold up their own address alone.
const TURNS: usize = 16;

/// All strangers of a server.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    /// By age.
    present: BTreeMap<u64, CancellationToken>,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Debug)]
struct Address {
    present: usize,
    turns: Arc<Semaphore>,
}

/// One connection's place among the strangers; it leaves when dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    all: Arc<Strangers>,
    number: u64,
    address: IpAddr,
    turns: Arc<Semaphore>,
    displaced: CancellationToken,
}

impl Strangers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a connection from `address`; nothing if that has too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let address = network(address);
        let mut inner = self.inner();
        let new = || Address { present: 0, turns: Arc::new(Semaphore::new(TURNS)) };
        let of_address = inner.addresses.entry(address).or_insert_with(new);
        if of_address.present >= PER_ADDRESS {
            return None;
        }
        of_address.present += 1;
        let turns = of_address.turns.clone();
        if inner.present.len() >= MAX
            && let Some((_, oldest)) = inner.present.pop_first()
        {
            // It leaves by itself, as soon as it sees this.
            oldest.cancel();
        }
        inner.last += 1;
        let (number, displaced) = (inner.last, CancellationToken::new());
        inner.present.insert(number, displaced.clone());
        Some(Stranger { all: self.clone(), number, address, turns, displaced })
    }
}

impl Stranger {
    /// Waits until the connection must make way for another.
    pub(super) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }

    /// Waits for its turn among those of its address.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut inner = self.all.inner();
        inner.present.remove(&self.number);
        if let Some(address) = inner.addresses.get_mut(&self.address) {
            address.present -= 1;
            if address.present == 0 {
                inner.addresses.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: of IPv6 the network, since whoever has one address has all of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> IpAddr {
        let [.., b, c, d] = u32::try_from(number).unwrap().to_be_bytes();
        IpAddr::from([10, b, c, d])
    }

    #[test]
    fn an_address_has_so_many_and_others_have_theirs() {
        let all = Arc::new(Strangers::default());
        let mut there: Vec<_> = (0..PER_ADDRESS).map(|_| all.enter(address(1)).unwrap()).collect();
        assert!(all.enter(address(1)).is_none());
        let other = all.enter(address(2)).unwrap();
        there.pop();
        assert!(all.enter(address(1)).is_some());
        drop((there, other));
        assert!(all.inner().addresses.is_empty() && all.inner().present.is_empty());
    }

    #[test]
    fn the_oldest_makes_way_and_nobody_else() {
        let all = Arc::new(Strangers::default());
        let there: Vec<_> = (0..MAX + 10).map(|number| all.enter(address(number)).unwrap()).collect();
        let displaced = there.iter().filter(|stranger| stranger.displaced.is_cancelled()).count();
        assert_eq!(displaced, 10);
        assert!(there[..10].iter().all(|stranger| stranger.displaced.is_cancelled()));
        drop(there);
        assert!(all.inner().addresses.is_empty() && all.inner().present.is_empty());
    }

    #[test]
    fn the_addresses_of_a_network_are_one() {
        let [one, two, other] =
            ["2001:db8::1", "2001:db8::2:0:0:5", "2001:db8:0:1::1"].map(|text| network(text.parse().unwrap()));
        assert_eq!(one, two);
        assert_ne!(one, other);
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), address(1));
    }
}
