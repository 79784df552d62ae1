//! ① The table of kinds. A new kind is one file below this one and one line here.

pub mod backuprepository;
pub mod cachelocation;
pub mod cluster;
pub mod core;
pub mod databackup;
pub mod dataload;
pub mod datamigrate;
pub mod datarestore;
pub mod dataset;
pub mod datasetmount;
pub mod identityprovider;
pub mod jointoken;
pub mod link;
pub mod operation;
pub mod placement;
pub mod quota;
pub mod rbac;
pub mod source;
pub mod sourcehook;
pub mod storage;
pub mod user;

pub use self::backuprepository::{
    BackupRepository, BackupRepositorySpec, BackupRepositoryStatus, CheckResult, Retention, SnapshotInfo,
};
pub use self::cachelocation::{CacheLocation, CacheLocationStatus, MediumUsage, NodeUsage};
pub use self::cluster::{Cluster, ClusterSpec, ClusterState, ClusterStatus};
pub use self::core::{Event, Namespace, Secret};
pub use self::databackup::{DataBackup, DataBackupSpec, DataBackupStatus};
pub use self::dataload::{ClusterLoad, DataLoad, DataLoadSpec, DataLoadStatus, LoadTarget, LoadTier};
pub use self::datamigrate::{
    DataEnd, DataMigrate, DataMigrateSpec, DataMigrateStatus, DatasetRef, MigrateMode, MigrateVerify, OperationPhase,
    Progress, StorageRef,
};
pub use self::datarestore::{DataRestore, DataRestoreSpec, DataRestoreStatus, MemberDirectory};
pub use self::dataset::{Dataset, DatasetPhase, DatasetSpec, DatasetStatus, Home, HomeState};
pub use self::datasetmount::{DatasetMount, DatasetMountPhase, DatasetMountSpec, DatasetMountStatus};
pub use self::identityprovider::{
    ClaimProblem, IdentityProvider, IdentityProviderSpec, IdentityProviderStatus, Vouched,
};
pub use self::jointoken::{JoinToken, JoinTokenSpec, JoinTokenStatus};
pub use self::link::{Link, LinkSpec, LinkStatus};
pub use self::operation::OperationStatus;
pub use self::placement::{ClusterChoice, DatasetChoice, Placement, PlacementSpec, PlacementStatus};
pub use self::quota::{Quota, QuotaSpec, QuotaStatus};
pub use self::rbac::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
pub use self::source::{EncryptOption, EncryptOptionSource, Mount, SecretKeySelector};
pub use self::sourcehook::{SourceHook, SourceHookSpec, SourceHookStatus};
pub use self::storage::{Storage, StorageSpec, StorageStatus};
pub use self::user::{User, UserSpec, UserToken, UserTokenSpec};

use crate::resource::Kind;

/// Every kind that the hub serves.
pub static KINDS: &[Kind] = &[
    Kind::of::<Namespace>(),
    Kind::of::<Secret>(),
    Kind::of::<Event>(),
    Kind::of::<Dataset>(),
    Kind::of::<DataMigrate>(),
    Kind::of::<DataBackup>(),
    Kind::of::<DataRestore>(),
    Kind::of::<DataLoad>(),
    Kind::of::<Cluster>(),
    Kind::of::<Storage>(),
    Kind::of::<Link>(),
    Kind::of::<BackupRepository>(),
    Kind::of::<Placement>(),
    Kind::of::<CacheLocation>(),
    Kind::of::<DatasetMount>(),
    Kind::of::<SourceHook>(),
    Kind::of::<Quota>(),
    Kind::of::<JoinToken>(),
    Kind::of::<Role>(),
    Kind::of::<RoleBinding>(),
    Kind::of::<ClusterRole>(),
    Kind::of::<ClusterRoleBinding>(),
    Kind::of::<IdentityProvider>(),
    Kind::of::<User>(),
    Kind::of::<UserToken>(),
];

/// The kind that a store key belongs to.
#[must_use]
pub fn kind_of_key(key: &str) -> Option<&'static Kind> {
    let mut parts = key.strip_prefix("/registry/")?.splitn(3, '/');
    let (group, plural) = (parts.next()?, parts.next()?);
    let group = if group == "core" { "" } else { group };
    find(group, plural)
}

/// The kind served under a group and a plural name.
#[must_use]
pub fn find(group: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.info.group == group && k.info.plural == plural)
}

/// The group of Fluvial's own kinds.
pub const FLUVIAL_GROUP: &str = "fluvial.io";
/// The group of the kinds shared with Fluid.
pub const DATA_GROUP: &str = "data.fluid.io";
/// The one version of both groups.
pub const VERSION: &str = "v1alpha1";
