//! The bucket behind the demo's S3 endpoint: objects are files in a folder, named by their keys, with an index in memory.
//!
//! Invariants: an object appears by one rename, whole, and then in the index; a page of a listing costs what it shows.
//! Deliberately absent: everything that the index would have to survive, and calls that a migration does not make: it is
//! a store to show one with, not to keep data in.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures::TryStreamExt as _;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, ETag,
    ETagCondition, EncodingType, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
    ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, Metadata, PutObjectInput,
    PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

/// What S3 gives in one page of a listing.
const PAGE: i32 = 1000;
/// Read at a time from a file that is sent.
const CHUNK: usize = 256 * 1024;

/// One bucket of objects.
pub(super) struct Bucket {
    name: String,
    /// Objects, by their keys.
    objects: PathBuf,
    /// Bytes on their way to an object.
    incoming: PathBuf,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    /// Numbers files and versions: no two are alike.
    next: u64,
}

#[derive(Clone)]
struct Object {
    content: Content,
    modified: SystemTime,
    metadata: Option<Metadata>,
}

/// A file of bytes and what names this version of them.
#[derive(Clone)]
struct Content {
    file: PathBuf,
    length: u64,
    etag: String,
}

struct Upload {
    key: String,
    metadata: Option<Metadata>,
    parts: BTreeMap<i32, Content>,
}

impl Bucket {
    /// An empty bucket in a folder of its own, which is made.
    pub(super) fn new(root: &Path, name: &str) -> std::io::Result<Self> {
        let (objects, incoming) = (root.join(name), root.join(".incoming"));
        std::fs::create_dir_all(&objects)?;
        std::fs::create_dir_all(&incoming)?;
        Ok(Self { name: name.to_owned(), objects, incoming, index: Mutex::default() })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // No update is left half done by a panic: each is one insertion or removal.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_here(&self, bucket: &str) -> S3Result {
        if bucket == self.name { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    fn object(&self, bucket: &str, key: &str) -> S3Result<Object> {
        self.is_here(bucket)?;
        self.index().objects.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }

    fn number(&self) -> u64 {
        let mut index = self.index();
        index.next += 1;
        index.next
    }

    /// A new file, and the content that it will be.
    async fn new_file(&self) -> S3Result<(File, Content)> {
        let number = self.number();
        let file = self.incoming.join(number.to_string());
        let opened = File::create_new(&file).await.map_err(internal)?;
        Ok((opened, Content { file, length: 0, etag: format!("demo-{number}") }))
    }

    /// Writes a body into a file.
    async fn receive(&self, body: Option<StreamingBlob>, length: Option<i64>) -> S3Result<Content> {
        let (mut file, mut content) = self.new_file().await?;
        let mut body = body.ok_or_else(|| s3_error!(IncompleteBody))?;
        while let Some(bytes) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody))? {
            file.write_all(&bytes).await.map_err(internal)?;
            content.length += bytes.len() as u64;
        }
        file.flush().await.map_err(internal)?;
        if length.is_some_and(|length| u64::try_from(length) != Ok(content.length)) {
            let _ = tokio::fs::remove_file(&content.file).await;
            return Err(s3_error!(IncompleteBody));
        }
        Ok(content)
    }

    /// Makes a content an object, visible at once and whole.
    async fn publish(&self, key: String, mut content: Content, metadata: Option<Metadata>) -> S3Result<String> {
        if let Some(path) = self.path(&key) {
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await.map_err(internal)?;
            }
            tokio::fs::rename(&content.file, &path).await.map_err(internal)?;
            content.file = path;
        }
        let etag = content.etag.clone();
        self.index().objects.insert(key, Object { content, modified: SystemTime::now(), metadata });
        Ok(etag)
    }

    /// The file of a key; none if no file can have that name, such as a folder's mark: it stays among the incoming.
    fn path(&self, key: &str) -> Option<PathBuf> {
        let good = key.split('/').all(|name| !["", ".", ".."].contains(&name) && !name.contains('\0'));
        good.then(|| self.objects.join(key))
    }
}

fn internal(error: std::io::Error) -> s3s::S3Error {
    s3_error!(error, InternalError)
}

fn length(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

/// A key as a listing in URL encoding shows it: names may have characters that XML has not.
fn encoded(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        self.is_here(&input.bucket)?;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or_else(|| input.start_after.clone());
        let most = usize::try_from(input.max_keys.unwrap_or(PAGE).clamp(0, PAGE)).unwrap_or_default();
        let in_url = input.encoding_type.as_ref().is_some_and(|kind| kind.as_str() == EncodingType::URL);
        let index = self.index();
        let from = match &after {
            Some(after) if *after >= prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(prefix.clone()),
        };
        let mut found = index.objects.range((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&prefix));
        let mut last = None;
        let mut contents = Vec::new();
        for (key, object) in found.by_ref().take(most) {
            last = Some(key.clone());
            contents.push(s3s::dto::Object {
                key: Some(if in_url { encoded(key) } else { key.clone() }),
                size: length(object.content.length),
                e_tag: Some(ETag::Strong(object.content.etag.clone())),
                last_modified: Some(Timestamp::from(object.modified)),
                ..Default::default()
            });
        }
        let more = most > 0 && found.next().is_some();
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: i32::try_from(contents.len()).ok(),
            max_keys: input.max_keys,
            is_truncated: Some(more),
            contents: (!contents.is_empty()).then_some(contents),
            next_continuation_token: last.filter(|_| more),
            continuation_token: input.continuation_token,
            encoding_type: input.encoding_type,
            start_after: input.start_after,
            name: Some(input.bucket),
            prefix: input.prefix,
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.object(&req.input.bucket, &req.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: length(object.content.length),
            e_tag: Some(ETag::Strong(object.content.etag)),
            last_modified: Some(Timestamp::from(object.modified)),
            metadata: object.metadata,
            ..Default::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let object = self.object(&input.bucket, &input.key)?;
        let etag = ETag::Strong(object.content.etag);
        if let Some(ETagCondition::ETag(wanted)) = &input.if_match
            && !etag.strong_cmp(wanted)
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let whole = object.content.length;
        let range = input.range.map_or(Ok(0..whole), |range| range.check(whole))?;
        let mut file = File::open(&object.content.file).await.map_err(internal)?;
        file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(internal)?;
        let bytes = range.end.saturating_sub(range.start);
        let last = range.end.saturating_sub(1);
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(ReaderStream::with_capacity(file.take(bytes), CHUNK))),
            content_length: length(bytes),
            content_range: input.range.map(|_| format!("bytes {}-{last}/{whole}", range.start)),
            e_tag: Some(etag),
            last_modified: Some(Timestamp::from(object.modified)),
            metadata: object.metadata,
            ..Default::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        self.is_here(&input.bucket)?;
        let content = self.receive(input.body, input.content_length).await?;
        let etag = self.publish(input.key, content, input.metadata).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.is_here(&req.input.bucket)?;
        let removed = self.index().objects.remove(&req.input.key);
        if let Some(object) = removed {
            tokio::fs::remove_file(&object.content.file).await.map_err(internal)?;
        }
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, metadata, .. } = req.input;
        self.is_here(&bucket)?;
        let id = format!("upload-{}", self.number());
        let upload = Upload { key: key.clone(), metadata, parts: BTreeMap::new() };
        self.index().uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        self.is_here(&input.bucket)?;
        if !self.index().uploads.contains_key(&input.upload_id) {
            return Err(s3_error!(NoSuchUpload));
        }
        let content = self.receive(input.body, input.content_length).await?;
        let etag = content.etag.clone();
        match self.index().uploads.get_mut(&input.upload_id) {
            Some(upload) => upload.parts.insert(input.part_number, content),
            None => return Err(s3_error!(NoSuchUpload)),
        };
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        self.is_here(&input.bucket)?;
        let index = self.index();
        let upload = index.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let part = |(number, content): (&i32, &Content)| s3s::dto::Part {
            part_number: Some(*number),
            size: length(content.length),
            e_tag: Some(ETag::Strong(content.etag.clone())),
            ..Default::default()
        };
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(upload.parts.iter().map(part).collect()),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            is_truncated: Some(false),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        self.is_here(&input.bucket)?;
        let parts = {
            let index = self.index();
            let upload = index.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
            let wanted = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
            let part = |wanted: &s3s::dto::CompletedPart| {
                let content = upload.parts.get(&wanted.part_number?)?;
                (wanted.e_tag.as_ref()?.value() == content.etag).then(|| content.clone())
            };
            let found: Option<Vec<Content>> = wanted.iter().map(part).collect();
            found.filter(|found| !found.is_empty()).ok_or_else(|| s3_error!(InvalidPart))?
        };
        let (mut whole, mut content) = self.new_file().await?;
        for part in &parts {
            let mut file = File::open(&part.file).await.map_err(internal)?;
            content.length += tokio::io::copy(&mut file, &mut whole).await.map_err(internal)?;
        }
        whole.flush().await.map_err(internal)?;
        let upload = self.index().uploads.remove(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let etag = self.publish(upload.key, content, upload.metadata).await?;
        for part in upload.parts.values() {
            tokio::fs::remove_file(&part.file).await.map_err(internal)?;
        }
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(etag)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.is_here(&req.input.bucket)?;
        let removed = self.index().uploads.remove(&req.input.upload_id);
        for part in removed.ok_or_else(|| s3_error!(NoSuchUpload))?.parts.values() {
            tokio::fs::remove_file(&part.file).await.map_err(internal)?;
        }
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
