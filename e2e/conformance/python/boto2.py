"""boto 2, the AWS SDK for Python of before 2015, which knows the metadata service as it was first, without tokens."""
import re
import sys
from urllib.parse import urlsplit

import boto
from boto.regioninfo import RegionInfo
from boto.sts.connection import STSConnection
from boto.utils import get_instance_identity, retry_url

import talk

endpoint, region = urlsplit(sys.argv[1]), sys.argv[2]
connection = None


def identity(_):
    global connection
    if connection is None:
        made = STSConnection(region=RegionInfo(name=region, endpoint=endpoint.hostname), port=endpoint.port, is_secure=False)
        made.auth_service_name, made.auth_region_name = "sts", region  # which it reads off the host's name otherwise
        connection = made
    text = connection.make_request("GetCallerIdentity", {}, "/", "GET").read().decode()
    arn = re.search("<Arn>(.*?)</Arn>", text)
    if not arn:
        raise RuntimeError(text)
    return {"key": connection.provider.access_key, "arn": arn.group(1)}


def forget(_):
    global connection
    connection = None


def get(path):
    body = retry_url("http://169.254.169.254/latest/meta-data/" + path, retry_on_404=False, num_retries=1)
    return {"body": body.decode() if isinstance(body, bytes) else body}


talk.run(
    boto.__version__,
    identity=identity,
    forget=forget,
    region=lambda _: {"region": get_instance_identity(timeout=2, num_retries=1)["document"]["region"]},
    get=get,
)
