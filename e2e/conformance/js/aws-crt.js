// The AWS Common Runtime for Node.js: the reader of the metadata service that the SDKs for C++, Java and Python share with
// it. It shows credentials only by signing with them.
const http = require('http');
const crt = require('aws-crt');
const talk = require('./talk.js');

const [endpoint, region] = process.argv.slice(2);
let provider = crt.auth.AwsCredentialsProvider.newDefault();

async function sign() {
  const { host } = new URL(endpoint);
  const path = '/?Action=GetCallerIdentity&Version=2011-06-15';
  const request = new crt.http.HttpRequest('GET', path, new crt.http.HttpHeaders([['Host', host]]));
  await crt.auth.aws_sign_request(request, {
    algorithm: crt.auth.AwsSigningAlgorithm.SigV4,
    signature_type: crt.auth.AwsSignatureType.HttpRequestViaHeaders,
    provider, region, service: 'sts', date: new Date(),
  });
  return { path, headers: Object.fromEntries([...request.headers]) };
}

function send({ path, headers }) {
  return new Promise((resolve, reject) => {
    http.get(endpoint + path, { headers }, (response) => {
      let body = '';
      response.on('data', (chunk) => { body += chunk; });
      response.on('end', () => resolve(body));
    }).on('error', reject);
  });
}

talk({
  version: require('aws-crt/package.json').version,
  async identity() {
    const request = await sign();
    const [, key] = /Credential=([^/]*)/.exec(request.headers.Authorization);
    const body = await send(request);
    const arn = /<Arn>(.*?)<\/Arn>/.exec(body);
    if (!arn) throw new Error(body);
    return { key, arn: arn[1] };
  },
  async forget() {
    provider = crt.auth.AwsCredentialsProvider.newDefault();
  },
});
