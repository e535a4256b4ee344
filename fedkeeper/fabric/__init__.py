"""The embedded FaaS: OpenWhisk and Cloud Functions APIs over real worker processes."""
