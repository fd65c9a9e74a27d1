//! The OpenAPI document of a service's verbs.

use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{AdditionalProperties, Object};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Paths,
    Ref, RefOr, Required, ResponseBuilder, Schema,
};
use utoipa::{PartialSchema, ToSchema};

use super::verb::Kind;
use super::{ApiMessage, Verb};
use crate::api_error::ErrorBody;

const JSON: &str = "application/json";
const BEARER: &str = "bearer";
/// What every verb may answer beside success.
const ERRORS: [(&str, &str); 10] = [
    (
        "400",
        "The request is wrong, or does not fit the object's state",
    ),
    ("401", "The caller is not known"),
    ("403", "The caller may not do this"),
    ("404", "There is no such object"),
    (
        "409",
        "The object is there already, or has changed meanwhile",
    ),
    ("415", "The body is no JSON"),
    ("429", "A quota or a limit is reached"),
    ("500", "The service failed"),
    ("503", "The service cannot do it now"),
    ("504", "There was no answer within the deadline"),
];

/// The document under construction.
pub struct Document(OpenApi);

impl Document {
    pub fn new(title: &str) -> Document {
        let mut components = Components::new();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
        let mut document = OpenApiBuilder::new()
            .info(InfoBuilder::new().title(title).version("v1").build())
            .components(Some(components))
            .security(Some([SecurityRequirement::new(BEARER, [] as [&str; 0])]))
            .build();
        document.paths = Paths::new();
        let mut document = Document(document);
        document.register::<ErrorBody>();
        document
    }

    pub fn json(&self) -> String {
        self.0.to_pretty_json().expect("the document is plain data") + "\n"
    }

    /// Describes a verb.
    ///
    /// # Panics
    /// If a path parameter is no field of the request, or another message has the name of one of its own.
    pub fn add<Req: ApiMessage, Resp: ApiMessage>(&mut self, service: &str, verb: &Verb) {
        self.register::<Resp>();
        self.register_parts::<Req>();
        let operation = OperationBuilder::new()
            .operation_id(Some(verb.name))
            .summary(Some(verb.summary))
            .tag(service);
        let operation = with_request::<Req>(operation, verb);
        let operation = with_answers::<Resp>(operation, verb);
        let method = match verb.method {
            Kind::Get => HttpMethod::Get,
            Kind::Post => HttpMethod::Post,
            Kind::Put => HttpMethod::Put,
            Kind::Delete => HttpMethod::Delete,
        };
        let item = PathItem::new(method, operation.build());
        match self.0.paths.paths.get_mut(verb.path) {
            Some(known) => known.merge_operations(item),
            None => {
                self.0.paths.paths.insert(verb.path.to_owned(), item);
            }
        }
    }

    fn register<T: ToSchema + PartialSchema>(&mut self) {
        self.register_parts::<T>();
        self.define(T::name().into_owned(), T::schema());
    }

    /// The schemas that a type's own refers to.
    fn register_parts<T: ToSchema>(&mut self) {
        let mut parts = Vec::new();
        T::schemas(&mut parts);
        for (name, schema) in parts {
            self.define(name, schema);
        }
    }

    /// # Panics
    /// If another message has the name: the document would say of one what is the other's.
    fn define(&mut self, name: String, schema: RefOr<Schema>) {
        let schemas = &mut self.components().schemas;
        let before = schemas.get(&name);
        assert!(
            before.is_none_or(|before| *before == schema),
            "two messages are called {name}: give one another name"
        );
        schemas.insert(name, schema);
    }

    fn components(&mut self) -> &mut Components {
        self.0.components.get_or_insert_default()
    }
}

fn required(required: bool) -> Required {
    if required {
        Required::True
    } else {
        Required::False
    }
}

fn parameter(
    name: &str,
    place: ParameterIn,
    is_required: bool,
    schema: RefOr<Schema>,
) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required(is_required))
        .schema(Some(schema))
}

/// The fields of a request: in the path, and in the body or the query.
fn with_request<Req: ApiMessage>(operation: OperationBuilder, verb: &Verb) -> OperationBuilder {
    let mut operation = operation;
    let mut fields = match Req::schema() {
        RefOr::T(Schema::Object(object)) => object,
        _ => Object::new(),
    };
    for name in verb.path_parameters() {
        let schema = fields.properties.remove(name);
        let schema = schema.unwrap_or_else(|| panic!("{name} is no field of {}", Req::name()));
        fields.required.retain(|required| required != name);
        operation = operation.parameter(parameter(name, ParameterIn::Path, true, schema));
    }
    if !verb.method.has_body() {
        for (name, schema) in fields.properties {
            let is_required = fields.required.contains(&name);
            operation =
                operation.parameter(parameter(&name, ParameterIn::Query, is_required, schema));
        }
        return operation;
    }
    let is_required = !fields.required.is_empty();
    fields.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    let content = ContentBuilder::new().schema(Some(Schema::Object(fields)));
    let body = RequestBodyBuilder::new()
        .content(JSON, content.build())
        .required(Some(required(is_required)));
    operation.request_body(Some(body.build()))
}

fn with_answers<Resp: ApiMessage>(operation: OperationBuilder, verb: &Verb) -> OperationBuilder {
    let answer = |what: &str, schema: &str| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema)));
        ResponseBuilder::new()
            .description(what)
            .content(JSON, content.build())
    };
    let success = answer("Done", &Resp::name());
    let operation = operation.response(verb.success.as_str(), success);
    ERRORS.iter().fold(operation, |operation, (status, what)| {
        operation.response(*status, answer(what, &ErrorBody::name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(ToSchema)]
    #[schema(as = Same)]
    #[allow(dead_code)]
    struct One {
        of_one: u32,
    }

    #[derive(ToSchema)]
    #[schema(as = Same)]
    #[allow(dead_code)]
    struct Other {
        of_other: u32,
    }

    #[test]
    #[should_panic(expected = "two messages are called Same")]
    fn two_messages_of_one_name_are_refused() {
        let mut document = Document::new("test");
        document.register::<One>();
        document.register::<One>();
        document.register::<Other>();
    }
}
