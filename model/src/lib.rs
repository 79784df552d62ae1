//! The words and the decisions of Fluvial, pure: data in, data out.
//!
//! Reading order follows the path: [`kinds`] (① what users write), [`access`] (① who may), [`store`], [`catalog`] and
//! [`audit`] (② what is kept), [`placement`], [`route`], [`migration`], [`bandwidth`], [`backup`], [`loading`] and [`upkeep`]
//! (③ what is decided), [`desired`] (④ what an agent is told), [`manifest`] (⑤ what a version of a dataset is), [`report`]
//! (⑦ what agents say) and [`liveness`] (⑧ what it means).
//!
//! Deliberately absent: I/O of any kind, clocks, randomness, logging. Time and ids are arguments.

pub mod access;
pub mod audit;
pub mod backup;
pub mod bandwidth;
pub mod catalog;
pub mod causes;
pub mod desired;
pub mod field;
pub mod kinds;
pub mod liveness;
pub mod loading;
pub mod manifest;
pub mod meta;
pub mod migration;
pub mod names;
pub mod notification;
pub mod placement;
pub mod report;
pub mod resource;
pub mod route;
pub mod selector;
pub mod share;
pub mod store;
pub mod upkeep;
pub mod uri;
