//! The reading side of a relay: a source at which another agent reads.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fluvial_model::manifest::RelativePath;
use fluvial_proto::v1;
use fluvial_proto::v1::relay_service_client::RelayServiceClient;
use fluvial_transfer::TransferError;
use fluvial_transfer::place::readonly::Source;
use fluvial_transfer::place::{Detail, Found, Tag};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::from_wire;

/// How long the other agent may take for one answer: a chunk of 1 MiB from a slow disk over a slow line, or a look.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may take for the next page of a listing: a page of a large directory tree.
const NEXT_PAGE: Duration = Duration::from_secs(120);

/// One source of a migration, read through another agent.
#[derive(Debug, Clone)]
pub struct RelayPlace {
    name: String,
    client: RelayServiceClient<Channel>,
    operation: String,
    source: u32,
}

impl RelayPlace {
    /// Source number `source` of `operation`, which is `what` for people, through `cluster`'s agent.
    #[must_use]
    pub fn new(channel: Channel, cluster: &str, operation: &str, source: u32, what: &str) -> Self {
        let name = format!("{what} through the agent of {cluster}");
        Self { name, client: RelayServiceClient::new(channel), operation: operation.to_owned(), source }
    }

    fn failed(&self, op: &'static str, path: &RelativePath, status: &Status) -> TransferError {
        let (place, path) = (self.name.clone(), path.to_string());
        match status.code() {
            Code::NotFound => TransferError::NotFound { op, place, path },
            Code::Aborted => TransferError::Changed { place, path },
            Code::PermissionDenied | Code::Unauthenticated => TransferError::Denied { op, place, path },
            Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented => {
                TransferError::Server { op, place, path, status: 400, code: status.message().to_owned() }
            }
            _ => TransferError::Unreachable { op, place, why: status.message().to_owned() },
        }
    }

    fn silent(&self, op: &'static str, within: Duration) -> TransferError {
        TransferError::Unreachable { op, place: self.name.clone(), why: format!("no answer within {within:?}") }
    }

    fn strange(&self, op: &'static str, path: &RelativePath) -> TransferError {
        let code = "an entry that no dataset can hold".to_owned();
        TransferError::Server { op, place: self.name.clone(), path: path.to_string(), status: 400, code }
    }

    /// One call and its first answer, in time.
    async fn call<T>(
        &self,
        op: &'static str,
        path: &RelativePath,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, TransferError> {
        let answer = tokio::time::timeout(ANSWER, Box::pin(call)).await.map_err(|_| self.silent(op, ANSWER))?;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failed(op, path, &status))
    }

    async fn next<T>(
        &self,
        op: &'static str,
        path: &RelativePath,
        answers: &mut Streaming<T>,
        within: Duration,
    ) -> Result<Option<T>, TransferError> {
        let next = tokio::time::timeout(within, answers.message()).await.map_err(|_| self.silent(op, within))?;
        next.map_err(|status| self.failed(op, path, &status))
    }

    /// At most `length` bytes, and what was looked at if that was asked for.
    async fn read_all(
        &self,
        path: &RelativePath,
        request: v1::RelayReadRequest,
    ) -> Result<(Option<Found>, Bytes), TransferError> {
        const OP: &str = "read";
        let length = usize::try_from(request.length).unwrap_or(usize::MAX);
        let mut client = self.client.clone();
        let mut answers = self.call(OP, path, client.read(request)).await?;
        let (mut found, mut data) = (None, BytesMut::new());
        while let Some(chunk) = self.next(OP, path, &mut answers, ANSWER).await? {
            if let Some(entry) = chunk.found {
                found = Some(from_wire(entry).ok_or_else(|| self.strange(OP, path))?);
            }
            if data.is_empty() && chunk.data.len() == length {
                return Ok((found, chunk.data));
            }
            if data.len() + chunk.data.len() > length {
                return Err(self.strange(OP, path));
            }
            if data.is_empty() {
                data.reserve(length);
            }
            data.extend_from_slice(&chunk.data);
        }
        Ok((found, data.freeze()))
    }
}

#[async_trait]
impl Source for RelayPlace {
    fn name(&self) -> &str {
        &self.name
    }

    async fn probe(&self) -> Result<(), TransferError> {
        self.stat(&RelativePath::root()).await.map(drop)
    }

    async fn list(&self, detail: Detail, found: mpsc::Sender<Found>) -> Result<(), TransferError> {
        const OP: &str = "list";
        let root = RelativePath::root();
        let tags_only = detail == Detail::Tags;
        let request = v1::RelayListRequest { operation: self.operation.clone(), source: self.source, tags_only };
        let mut client = self.client.clone();
        let mut pages = self.call(OP, &root, client.list(request)).await?;
        while let Some(page) = self.next(OP, &root, &mut pages, NEXT_PAGE).await? {
            for entry in page.entries {
                let entry = from_wire(entry).ok_or_else(|| self.strange(OP, &root))?;
                if found.send(entry).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn stat(&self, path: &RelativePath) -> Result<Found, TransferError> {
        const OP: &str = "look at";
        let request =
            v1::RelayStatRequest { operation: self.operation.clone(), source: self.source, path: path.to_string() };
        let mut client = self.client.clone();
        let entry = self.call(OP, path, client.stat(request)).await?;
        from_wire(entry).ok_or_else(|| self.strange(OP, path))
    }

    async fn fetch(&self, path: &RelativePath, size: u64) -> Result<(Found, Bytes), TransferError> {
        let request = v1::RelayReadRequest {
            operation: self.operation.clone(),
            source: self.source,
            path: path.to_string(),
            length: size,
            look: true,
            ..v1::RelayReadRequest::default()
        };
        let (found, data) = self.read_all(path, request).await?;
        Ok((found.ok_or_else(|| self.strange("read", path))?, data))
    }

    async fn read(
        &self,
        path: &RelativePath,
        tag: Option<&Tag>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, TransferError> {
        let request = v1::RelayReadRequest {
            operation: self.operation.clone(),
            source: self.source,
            path: path.to_string(),
            tag: tag.map(|tag| tag.0.clone()).unwrap_or_default(),
            offset,
            length,
            look: false,
        };
        self.read_all(path, request).await.map(|(_, data)| data)
    }
}
