//! What the build script of an API crate does: `.proto` texts become messages, gRPC clients, JSON and
//! OpenAPI schemas, and one descriptor set for reflection. No protoc is needed.
//!
//! JSON is what the fields are called, with plain numbers; a field that is not known is refused, one that
//! is left out has its default. So messages of such an API have no bytes, `oneof` or enum fields.
//! The crate includes `descriptors.bin` and, by `tonic::include_proto!`, each package.

#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "a build script runs outside of the engine"
)]

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

/// What OpenAPI says of a field beside its type: the field, as `package.Message.field`, and the arguments of
/// utoipa's `schema` attribute, as `min_length = 1, max_length = 63`.
pub type Constraint<'a> = (&'a str, &'a str);

/// Compiles the texts below `proto/`.
///
/// # Errors
/// What is wrong with the texts, or that the output cannot be written.
pub fn compile(files: &[&str], constraints: &[Constraint<'_>]) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut builder = tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .message_attribute(
            ".",
            "#[derive(serde::Serialize, serde::Deserialize, utoipa::ToSchema)]",
        )
        .message_attribute(".", "#[serde(default, deny_unknown_fields)]");
    for (field, arguments) in constraints {
        builder = builder.field_attribute(*field, format!("#[schema({arguments})]"));
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
