//! ① What makes a Rust type a kind of the API, and the row that each kind adds to the table of kinds.
//!
//! The table drives routes, discovery, OpenAPI, `Table` output, validation, the catalog's rows and access rules: a new
//! kind is one file and one line in `kinds.rs`.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::catalog::Row;
use crate::field::FieldErrors;
use crate::meta::ObjectMeta;
use crate::names::NameRule;

/// Whether objects of a kind live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// Who may write a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Users, through the API.
    Users,
    /// The hub alone: users read it.
    Hub,
    /// The hub alone: users read it, and take it back by deleting it.
    HubUntilDeleted,
}

/// A column of `kubectl get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrinterColumn {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// Path into the object, a JSON pointer.
    pub pointer: &'static str,
    /// 0 is always shown; more only with `-o wide`.
    pub priority: i32,
}

/// The names and the shape of a kind.
#[derive(Debug, Clone, Copy)]
pub struct KindInfo {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    pub writers: Writers,
    /// Whether `/status` exists; if so, status is written there alone.
    pub status: bool,
    pub name_rule: NameRule,
    pub columns: &'static [PrinterColumn],
    /// Whether the value is encrypted before it is stored.
    pub secret: bool,
}

impl KindInfo {
    /// `group/version`, or `version` for the core group.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The start of every key of the kind in the store.
    #[must_use]
    pub fn prefix(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        format!("/registry/{group}/{}/", self.plural)
    }

    /// The start of the keys in one namespace.
    #[must_use]
    pub fn namespace_prefix(&self, namespace: &str) -> String {
        format!("{}{namespace}/", self.prefix())
    }

    /// The key of one object. `namespace` is ignored for cluster-scoped kinds.
    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> String {
        match self.scope {
            Scope::Namespaced => format!("{}{namespace}/{name}", self.prefix()),
            Scope::Cluster => format!("{}{name}", self.prefix()),
        }
    }
}

/// Why a document is no object of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("{path}: {problem}")]
    Type { path: String, problem: String },
}

/// An object read strictly: what was understood, and the fields that were not.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object with unknown fields pruned.
    pub object: Value,
    /// Paths of fields that the kind does not have.
    pub unknown: Vec<String>,
}

/// A kind of the API.
pub trait Resource: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static {
    const INFO: KindInfo;

    fn meta(&self) -> &ObjectMeta;
    fn meta_mut(&mut self) -> &mut ObjectMeta;

    /// Reports every rule of the kind that the object breaks; `old` is what an update would replace.
    fn validate(&self, old: Option<&Self>, errors: &mut FieldErrors);

    /// What SQL sees of the object.
    fn project(&self) -> Vec<Row> {
        Vec::new()
    }

    /// The key of the object in the store.
    fn key(&self) -> String {
        Self::INFO.key(&self.meta().namespace, &self.meta().name)
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// Where the value departs from the kind.
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        serde_path_to_error::deserialize(value)
            .map_err(|e| DecodeError::Type { path: e.path().to_string(), problem: e.inner().to_string() })
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// Where the bytes are no JSON or depart from the kind.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize(&mut json)
            .map_err(|e| DecodeError::Type { path: e.path().to_string(), problem: e.inner().to_string() })
    }
}

/// A row of the table of kinds: the names, and the kind's functions over untyped objects.
pub struct Kind {
    pub info: KindInfo,
    pub decode: fn(Value) -> Result<Decoded, DecodeError>,
    pub validate: fn(&Value, Option<&Value>) -> Result<FieldErrors, DecodeError>,
    pub project: fn(&[u8]) -> Vec<Row>,
    pub schema: fn() -> schemars::Schema,
}

impl Kind {
    /// The row of a type.
    #[must_use]
    pub const fn of<R: Resource>() -> Self {
        Self { info: R::INFO, decode: decode::<R>, validate: validate::<R>, project: project::<R>, schema: schema::<R> }
    }
}

fn decode<R: Resource>(value: Value) -> Result<Decoded, DecodeError> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let read: Result<R, _> = serde_ignored::deserialize(tracked, |path| unknown.push(path.to_string()));
    let object = read.map_err(|e| DecodeError::Type { path: track.path().to_string(), problem: e.to_string() })?;
    let object =
        serde_json::to_value(object).map_err(|e| DecodeError::Type { path: ".".to_owned(), problem: e.to_string() })?;
    Ok(Decoded { object, unknown })
}

fn validate<R: Resource>(new: &Value, old: Option<&Value>) -> Result<FieldErrors, DecodeError> {
    let new = R::from_value(new)?;
    let old = old.map(R::from_value).transpose()?;
    let mut errors = FieldErrors::default();
    new.meta().validate(R::INFO.name_rule, &mut errors);
    new.validate(old.as_ref(), &mut errors);
    Ok(errors)
}

fn project<R: Resource>(bytes: &[u8]) -> Vec<Row> {
    R::from_bytes(bytes).map(|object| object.project()).unwrap_or_default()
}

fn schema<R: Resource>() -> schemars::Schema {
    let settings = schemars::generate::SchemaSettings::openapi3().with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<R>()
}

/// Declares the object type of a kind: `object!(Dataset, DatasetSpec, DatasetStatus)`, or without a status.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $spec:ty, $status:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            #[serde(default)]
            pub api_version: String,
            #[serde(default)]
            pub kind: String,
            #[serde(default)]
            pub metadata: $crate::meta::ObjectMeta,
            #[serde(default)]
            pub spec: $spec,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub status: Option<$status>,
        }

        impl $name {
            /// A new object with this spec, not yet stored.
            #[must_use]
            pub fn new(namespace: &str, name: &str, spec: $spec) -> Self {
                Self {
                    api_version: <Self as $crate::resource::Resource>::INFO.api_version(),
                    kind: <Self as $crate::resource::Resource>::INFO.kind.to_owned(),
                    metadata: $crate::meta::ObjectMeta {
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                        ..Default::default()
                    },
                    spec,
                    status: None,
                }
            }
        }
    };
}
pub(crate) use object;

/// The two accessors that every kind writes the same way.
macro_rules! metadata_accessors {
    () => {
        fn meta(&self) -> &$crate::meta::ObjectMeta {
            &self.metadata
        }
        fn meta_mut(&mut self) -> &mut $crate::meta::ObjectMeta {
            &mut self.metadata
        }
    };
}
pub(crate) use metadata_accessors;
