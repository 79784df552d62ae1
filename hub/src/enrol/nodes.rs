//! What the nodes of clusters may ask of a hub: a new certificate, and where the agent is that tells them what to do.
//!
//! Invariant: whose node it is, is what its certificate says; a node of a cluster that was removed gets nothing.

use fluvial_certs::Identity;
use fluvial_model::kinds::Cluster;
use fluvial_proto::v1;
use fluvial_proto::v1::node_service_server::NodeService;
use fluvial_raft::Consistency;
use tonic::{Request, Response, Status};

use super::Issuer;
use crate::audit::Origin;
use crate::objects::Objects;
use crate::server::Peer;

/// The service.
#[derive(Clone)]
pub struct NodeCalls {
    objects: Objects,
    issuer: Issuer,
}

impl NodeCalls {
    #[must_use]
    pub fn new(issuer: Issuer) -> Self {
        Self { objects: issuer.objects.clone(), issuer }
    }

    /// The cluster of a node that calls.
    async fn cluster<T>(&self, request: &Request<T>) -> Result<(Identity, Cluster), Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.verified.as_ref());
        let Some(identity @ Identity::Node { cluster, .. }) = peer.map(|verified| &verified.identity) else {
            return Err(Status::permission_denied("only the node of a cluster may call this"));
        };
        let found = self.objects.get::<Cluster>("", cluster, Consistency::Linearizable).await;
        let found = found.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "a node's call could not be answered");
            Status::unavailable("the store did not answer: try again")
        })?;
        let removed = || Status::permission_denied(format!("cluster \"{cluster}\" was removed: join again"));
        Ok((identity.clone(), found.ok_or_else(removed)?.object))
    }
}

#[tonic::async_trait]
impl NodeService for NodeCalls {
    async fn renew_node(
        &self,
        request: Request<v1::RenewNodeRequest>,
    ) -> Result<Response<v1::RenewNodeResponse>, Status> {
        let csr = self.issuer.read(&request.get_ref().csr)?;
        let (identity, _) = self.cluster(&request).await?;
        let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
        let certificate = self.issuer.issue(&csr, &identity, None, &origin).await?;
        Ok(Response::new(v1::RenewNodeResponse { certificate, ca: self.issuer.roots() }))
    }

    async fn find_member(
        &self,
        request: Request<v1::FindMemberRequest>,
    ) -> Result<Response<v1::FindMemberResponse>, Status> {
        let (_, cluster) = self.cluster(&request).await?;
        let address = cluster.status.map(|status| status.address).unwrap_or_default();
        Ok(Response::new(v1::FindMemberResponse { address }))
    }
}
