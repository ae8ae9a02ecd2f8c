"""Emulators of object stores, each with an empty bucket named "bucket".

python object_stores.py gs|s3 PORT
"""

import http
import sys
import threading


def serve_gs(port: int) -> None:
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    download = objects.download

    def download_generation(request, response, storage, *arguments):
        """Adds the header and the precondition of downloads that TensorStore needs and the emulator lacks."""
        download(request, response, storage, *arguments)
        if response.status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            resource = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = resource["generation"]
            if resource["generation"] in request.query.get("ifGenerationNotMatch", []):
                response.status = http.HTTPStatus.NOT_MODIFIED
                response.write_file(b"")

    objects.download = download_generation
    create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").start()


def serve_s3(port: int) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="bucket")


if __name__ == "__main__":
    {"gs": serve_gs, "s3": serve_s3}[sys.argv[1]](int(sys.argv[2]))
    print("ready", flush=True)
    threading.Event().wait()
