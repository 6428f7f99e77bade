//! What a server answers with: every service, behind the one door, and the limits of HTTP.

use std::sync::Arc;

use tonic::service::Routes;
use tower::ServiceExt as _;

use super::{
    Security, ServeError, Server, admin_api, administration::Administration, arrived, control_api,
    desk::Desk, enrolment_api, gate::Gate, http_api, tls::Tls, to_the_end::ToTheEnd, transfer_api,
};
use crate::{
    limits,
    wire::{DESCRIPTORS, proto},
};

impl Server {
    pub(super) fn app(&self, health: impl HealthService) -> Result<axum::Router, ServeError> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that tools show the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let desk = Arc::new(Desk {
            coordinator: Arc::clone(&self.coordinator),
            credentials: Arc::clone(&self.credentials),
            audit: self.audit.clone(),
        });
        let control = control_api::ControlApi::new(Arc::clone(&desk));
        let control = ControlServer::new(control)
            .max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES_MAX);
        let mut grpc = Routes::builder();
        grpc.add_service(health)
            .add_service(
                reflection()
                    .build_v1()
                    .map_err(ServeError::Reflection)?
                    .max_decoding_message_size(limits::NAME_MESSAGE_BYTES_MAX),
            )
            .add_service(
                reflection()
                    .build_v1alpha()
                    .map_err(ServeError::Reflection)?
                    .max_decoding_message_size(limits::NAME_MESSAGE_BYTES_MAX),
            )
            .add_service(self.enrolment())
            .add_service(self.admin())
            .add_service(control);
        let grpc = grpc.routes().into_axum_router().reset_fallback().merge(self.transfer_routes());
        let http = http_api::router(desk, Arc::clone(&self.metrics));
        let app = http.merge(grpc).fallback(http_api::fallback);
        let gate = match &self.security {
            Security::Clear(rules) => Gate::open(*rules),
            Security::Tls(_) => Gate::keyed(Arc::clone(&self.credentials), self.audit.clone()),
        };
        Ok(gate.before(app))
    }

    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        match &self.security {
            Security::Clear(_) => None,
            Security::Tls(tls) => Some(Arc::clone(tls)),
        }
    }

    fn enrolment(&self) -> ToTheEnd<EnrolmentServer> {
        let api = enrolment_api::EnrolmentApi {
            coordinator: Arc::clone(&self.coordinator),
            credentials: Arc::clone(&self.credentials),
            tls: self.tls(),
            life: self.certificate_life,
            audit: self.audit.clone(),
        };
        self.to_the_end(
            EnrolmentServer::new(api).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES_MAX),
        )
    }

    fn admin(&self) -> ToTheEnd<AdminServer> {
        let administration = Arc::new(Administration {
            credentials: Arc::clone(&self.credentials),
            coordinator: Some(Arc::clone(&self.coordinator)),
            tls: self.tls(),
        });
        let api = admin_api::AdminApi::new(administration, self.audit.clone());
        self.to_the_end(
            AdminServer::new(api).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES_MAX),
        )
    }

    fn to_the_end<S>(&self, inner: S) -> ToTheEnd<S> {
        ToTheEnd { inner, shutdown: self.shutdown.clone() }
    }

    /// Two instances of one service on exact routes, because tonic's message limit is for a whole
    /// service.
    fn transfer_routes(&self) -> axum::Router {
        let service = |bytes_max: usize| {
            let api =
                transfer_api::TransferApi::new(Arc::clone(&self.coordinator), self.audit.clone());
            FileTransferServer::new(api).max_decoding_message_size(bytes_max)
        };
        axum::Router::new()
            .route_service(
                "/fts.v1.FileTransfer/Connect",
                service(limits::CONTROL_MESSAGE_BYTES_MAX),
            )
            .route_service(
                "/fts.v1.FileTransfer/UploadFile",
                service(limits::UPLOAD_MESSAGE_BYTES_MAX).map_request(arrived::counted),
            )
    }
}

type EnrolmentServer = proto::enrolment_server::EnrolmentServer<enrolment_api::EnrolmentApi>;
type AdminServer = proto::admin_server::AdminServer<admin_api::AdminApi>;
pub(super) type FileTransferServer =
    proto::file_transfer_server::FileTransferServer<transfer_api::TransferApi>;
pub(super) type ControlServer = proto::control_server::ControlServer<control_api::ControlApi>;

/// What tonic wants of a service; its own list of bounds.
pub(super) trait HealthService:
    tower::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send + 'static,
    > + tonic::server::NamedService
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<T> HealthService for T where
    T: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send + 'static,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// HTTP/1.1 and HTTP/2 on one port. Never a timeout here: it would end uploads and sessions.
pub(super) fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .accept_http1(true)
        .max_frame_size(limits::HTTP2_FRAME_BYTES)
        .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::HTTP2_STREAMS_MAX)
        .http2_max_header_list_size(limits::HTTP2_HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(limits::HTTP2_PING))
        .http2_keepalive_timeout(Some(limits::HTTP2_PING_WAIT))
}
