"""botocore and boto3, the AWS SDK for Python."""
import sys

import boto3
from botocore.session import Session
from botocore.utils import InstanceMetadataRegionFetcher

import talk

endpoint, region = sys.argv[1:]
session = None


def identity(_):
    global session
    if session is None:
        session = boto3.Session(botocore_session=Session(), region_name=region)
    credentials = session.get_credentials()
    if credentials is None:
        session = None
        raise LookupError("no credentials found")
    arn = session.client("sts", endpoint_url=endpoint).get_caller_identity()["Arn"]
    return {"key": credentials.get_frozen_credentials().access_key, "arn": arn}


def forget(_):
    global session
    session = None


def find_region(_):
    found = InstanceMetadataRegionFetcher().retrieve_region()
    if not found:
        raise LookupError("no region found")
    return {"region": found}


talk.run(boto3.__version__, identity=identity, forget=forget, region=find_region)
