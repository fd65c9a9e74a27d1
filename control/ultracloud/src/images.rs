//! Objects of LightningStor as images of volumes: `BUCKET/KEY` for users, and for volumes the same with the
//! object's tag, so that an object that was written anew is not taken for the one that it was.

use std::rc::Rc;
use std::sync::Arc;

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use coronafs::{ImageDigest, ImageError, ImageRef, ImageResolver, ImageSource};
use futures_util::future::{BoxFuture, LocalBoxFuture};
use lightningstor::buckets::BucketError;
use lightningstor::store::{Image, Images, READ_MAX, StoreError};
use s3_wire::checksum::{Algorithm, ChecksumType};
use s3_wire::{BucketName, ObjectKey};
use tonic::Code;
use volumes::ImageCatalog;

use crate::buckets::BucketService;

/// Between an object's name and its tag.
const TAG: &str = "?etag=";

/// The objects of a node.
#[derive(Clone)]
pub struct ObjectImages {
    buckets: BucketService,
    images: Images,
}

impl ObjectImages {
    /// Images among the objects of a node.
    pub fn new(buckets: BucketService, images: Images) -> ObjectImages {
        ObjectImages { buckets, images }
    }

    async fn look_up(&self, caller: &Caller, name: &str) -> Result<ImageRef, ApiError> {
        let (bucket, key) = parse(name).ok_or_else(|| {
            let what = format!("{name:?} names no object");
            ApiError::new(Code::InvalidArgument, "invalid-image", what)
                .object(format!("image {name}"))
                .next("name it as BUCKET/KEY")
        })?;
        let (images, user) = (self.images.clone(), caller.principal.tenant.clone());
        let (of, named) = (bucket.clone(), name.to_owned());
        let found = self.buckets.on_shard(caller, |buckets| async move {
            buckets.get(&user, &bucket)?;
            let image = images.open(&bucket, &key).await;
            Ok(image_ref(&named, &image.map_err(BucketError::Store)?))
        });
        found.await.map_err(|failure| {
            let missing =
                ApiError::new(Code::NotFound, "no-such-image", "the object does not exist")
                    .object(format!("image {name}"))
                    .next("list the bucket's objects over S3");
            match failure {
                shard_bridge::Failure::Service(BucketError::Store(StoreError::NoSuchKey)) => {
                    missing
                }
                failure => crate::buckets::told(failure, of.as_str()),
            }
        })
    }
}

/// An object as the image of a volume.
fn image_ref(name: &str, image: &Image) -> ImageRef {
    // One of parts' checksums is none of the content.
    let whole = image
        .checksum()
        .filter(|sum| sum.kind != ChecksumType::Composite);
    let sum = whole.map(|sum| sum.value);
    let sum = sum.filter(|sum| sum.algorithm() == Algorithm::Sha256);
    let digest = sum.and_then(|sum| sum.bytes().try_into().ok().map(ImageDigest));
    ImageRef {
        identity: format!("{name}{TAG}{}", tag(image)),
        bytes: image.size(),
        digest,
    }
}

fn tag(image: &Image) -> String {
    image.etag().to_string().trim_matches('"').to_owned()
}

fn parse(name: &str) -> Option<(BucketName, ObjectKey)> {
    let (bucket, key) = name.strip_prefix("s3://").unwrap_or(name).split_once('/')?;
    Some((BucketName::new(bucket).ok()?, ObjectKey::new(key).ok()?))
}

impl ImageCatalog for ObjectImages {
    fn find<'a>(
        &'a self,
        caller: &'a Caller,
        name: &'a str,
    ) -> BoxFuture<'a, Result<ImageRef, ApiError>> {
        Box::pin(self.look_up(caller, name))
    }

    fn resolver(&self) -> Rc<dyn ImageResolver> {
        Rc::new(Resolver(self.images.clone()))
    }
}

/// The catalogue as volumes' part of the node has it.
pub fn catalog(images: ObjectImages) -> Arc<dyn ImageCatalog> {
    Arc::new(images)
}

struct Resolver(Images);

impl ImageResolver for Resolver {
    fn resolve<'a>(
        &'a self,
        identity: &'a str,
    ) -> LocalBoxFuture<'a, Result<Rc<dyn ImageSource>, ImageError>> {
        Box::pin(async move {
            let wrong = || ImageError(format!("{identity:?} names no image"));
            let (name, wanted) = identity.rsplit_once(TAG).ok_or_else(wrong)?;
            let (bucket, key) = parse(name).ok_or_else(wrong)?;
            let opened = self.0.open(&bucket, &key).await;
            let image = opened.map_err(|error| failed(name, &error))?;
            let found = tag(&image);
            if found != wanted {
                let why =
                    format!("object {name} was written anew: its tag is {found}, not {wanted}");
                return Err(ImageError(why));
            }
            let source: Rc<dyn ImageSource> = Rc::new(Source {
                name: name.to_owned(),
                image,
            });
            Ok(source)
        })
    }
}

fn failed(name: &str, error: &StoreError) -> ImageError {
    ImageError(format!("object {name} cannot be read: {error}"))
}

struct Source {
    name: String,
    image: Image,
}

impl ImageSource for Source {
    fn bytes(&self) -> u64 {
        self.image.size()
    }

    fn read_at<'a>(
        &'a self,
        offset: u64,
        into: &'a mut [u8],
    ) -> LocalBoxFuture<'a, Result<(), ImageError>> {
        Box::pin(async move {
            let mut done = 0;
            while done < into.len() {
                let at = offset + done as u64;
                let wanted = (into.len() - done).min(READ_MAX);
                let read = self.image.read_at(at, wanted).await;
                let (buf, range) = read.map_err(|error| failed(&self.name, &error))?;
                if range.is_empty() {
                    let why = format!("object {} ends at byte {at}", self.name);
                    return Err(ImageError(why));
                }
                let part = &buf[range];
                into[done..done + part.len()].copy_from_slice(part);
                done += part.len();
            }
            Ok(())
        })
    }
}
