//! ① How many watches there are, and whose.
//!
//! Invariant: a watch is counted from before it reads the first object until its stream is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::status::ApiError;

/// The most watches of one user: a client has one for each kind and namespace, of which there are some 20 and some tens.
const PER_USER: usize = 512;
/// The most watches of all users. At some 10 KB each beside what their readers leave unread, 80 MB.
const MAX: usize = 8192;

/// The watches of a hub by user.
#[derive(Debug, Clone, Default)]
pub struct Watches(Arc<Mutex<HashMap<String, usize>>>);

/// One of them; it is over when this is dropped.
#[derive(Debug)]
pub struct Place {
    all: Watches,
    user: String,
}

impl Watches {
    fn table(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a watch of `user`.
    ///
    /// # Errors
    /// 429 if there are too many.
    pub fn enter(&self, user: &str) -> Result<Place, ApiError> {
        let mut table = self.table();
        let own = table.get(user).copied().unwrap_or_default();
        let too_many = |who: &str, limit: usize| ApiError::TooManyRequests {
            message: format!("{who} watches {limit} things already, the most that are allowed: end one first"),
        };
        if own >= PER_USER {
            return Err(too_many("this user", PER_USER));
        }
        if table.values().sum::<usize>() >= MAX {
            return Err(too_many("this hub's users", MAX));
        }
        table.insert(user.to_owned(), own + 1);
        Ok(Place { all: self.clone(), user: user.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.all.table();
        if let Some(own) = table.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                table.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_all_have_so_many_and_what_ends_is_free() {
        let watches = Watches::default();
        let mut places: Vec<_> = (0..PER_USER).map(|_| watches.enter("ann").unwrap()).collect();
        assert_eq!(watches.enter("ann").unwrap_err().code().as_u16(), 429);
        let other = watches.enter("bob").unwrap();
        places.pop();
        assert!(watches.enter("ann").is_ok());
        drop((places, other));
        assert!(watches.table().is_empty());
        let all: Vec<_> = (0..MAX).map(|n| watches.enter(&format!("user-{}", n % 100)).unwrap()).collect();
        assert_eq!(watches.enter("ann").unwrap_err().code().as_u16(), 429);
        drop(all);
        assert!(watches.enter("ann").is_ok());
    }
}
