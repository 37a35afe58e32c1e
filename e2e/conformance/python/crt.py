"""The AWS Common Runtime for Python, which boto3 uses where it is asked to."""
from importlib.metadata import version

from awscrt.auth import AwsCredentialsProvider
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

import talk

threads = EventLoopGroup(1)
bootstrap = ClientBootstrap(threads, DefaultHostResolver(threads))
provider = AwsCredentialsProvider.new_default_chain(bootstrap)


def identity(_):
    return {"key": provider.get_credentials().result(timeout=30).access_key_id}


def forget(_):
    global provider
    provider = AwsCredentialsProvider.new_default_chain(bootstrap)


talk.run(version("awscrt"), identity=identity, forget=forget)
