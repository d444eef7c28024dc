#ifdef PENSTOCK_REDIS_TLS
#define ERR_STATE openssl_err_state // a type of OpenSSL's, and a status of ours
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#undef ERR_STATE
#include <hiredis/hiredis.h>

#include <hiredis/hiredis_ssl.h> // wants the other one first
#endif

#include "broker/redis_tls.h"

#include <arpa/inet.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

#ifdef PENSTOCK_REDIS_TLS

static _Thread_local char why[ERROR_TEXT_SIZE];

bool redis_tls_available(void) { return true; }

const char *redis_tls_why(void) { return why; }

static int on_verify(int ok, X509_STORE_CTX *chain)
{
    if (ok == 0) {
        snprintf(why, sizeof why, "its certificate is not accepted: %s",
                 X509_verify_cert_error_string(X509_STORE_CTX_get_error(chain)));
    }
    return ok;
}

// NULL: not set, or empty.
static const char *file_of(const char *variable)
{
    const char *path = getenv(variable);
    return path != NULL && path[0] != '\0' ? path : NULL;
}

static enum status bad_file(const char *variable, const char *path, struct error *e)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());
    return error_set(e, ERR_INPUT, "bad_tls", "%s=%s cannot be used: %s", variable, path,
                     text != NULL ? text : "not a PEM file of that kind");
}

static enum status load_files(SSL_CTX *x, struct error *e)
{
    const char *ca = file_of("PENSTOCK_REDIS_CA"), *cert = file_of("PENSTOCK_REDIS_CERT"),
               *key = file_of("PENSTOCK_REDIS_KEY");
    if ((cert == NULL) != (key == NULL)) {
        return error_set(e, ERR_INPUT, "bad_tls",
                         "PENSTOCK_REDIS_CERT and PENSTOCK_REDIS_KEY belong together");
    }
    if (ca == NULL) SSL_CTX_set_default_verify_paths(x);
    else if (SSL_CTX_load_verify_locations(x, ca, NULL) != 1) {
        return bad_file("PENSTOCK_REDIS_CA", ca, e);
    }
    if (cert == NULL) return OK;
    if (SSL_CTX_use_certificate_chain_file(x, cert) != 1) {
        return bad_file("PENSTOCK_REDIS_CERT", cert, e);
    }
    if (SSL_CTX_use_PrivateKey_file(x, key, SSL_FILETYPE_PEM) != 1) {
        return bad_file("PENSTOCK_REDIS_KEY", key, e);
    }
    return OK;
}

// Whom the certificate must name.
static bool expect_host(SSL *ssl, const char *host)
{
    unsigned char address[sizeof(struct in6_addr)];
    bool ip = inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1;
    if (ip) return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host) == 1;
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

static enum status no_tls(const char *what, struct error *e)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());
    return error_set(e, ERR_IO, "bad_tls", "no TLS: %s: %s", what, text != NULL ? text : "?");
}

enum status redis_tls_start(struct redisContext *c, const struct redis_url *url, struct error *e)
{
    if (!url->tls) return OK;
    why[0] = '\0';
    ERR_clear_error();
    SSL_CTX *x = SSL_CTX_new(TLS_client_method());
    if (x == NULL) return no_tls("SSL_CTX_new", e);
    SSL_CTX_set_min_proto_version(x, TLS1_2_VERSION);
    SSL_CTX_set_verify(x, SSL_VERIFY_PEER, on_verify);
    enum status status = load_files(x, e);
    SSL *ssl = status == OK ? SSL_new(x) : NULL; // keeps what it needs of x
    SSL_CTX_free(x);
    if (status != OK) return status;
    if (ssl == NULL || !expect_host(ssl, url->host)) {
        SSL_free(ssl);
        return no_tls("SSL_new", e);
    }
    if (redisInitiateSSL(c, ssl) == REDIS_OK) return OK;
    status = redis_connection_error(c, url, e);
    SSL_free(ssl); // hiredis takes it only on success
    return status;
}

#else

bool redis_tls_available(void) { return false; }

const char *redis_tls_why(void) { return ""; }

enum status redis_tls_start(struct redisContext *c, const struct redis_url *url, struct error *e)
{
    (void) c, (void) e;
    check(!url->tls, "redis_url_parse refuses it");
    return OK;
}

#endif

static struct timeval timeval_of(int ms)
{
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
}

enum status redis_connect(struct redisContext **c, const struct redis_url *url, int wait_ms,
                          int reply_ms, struct error *e)
{
    bool tcp = url->host[0] != '\0';
    *c = tcp ? redisConnectWithTimeout(url->host, url->port, timeval_of(wait_ms))
             : redisConnectUnixWithTimeout(url->path, timeval_of(wait_ms));
    enum status status = OK;
    if (*c == NULL || (*c)->err != 0 || redisSetTimeout(*c, timeval_of(reply_ms)) != REDIS_OK) {
        status = redis_connection_error(*c, url, e);
    }
    if (status == OK) status = redis_tls_start(*c, url, e);
    if (status == OK) {
        redis_reader_limit(*c);
    } else if (*c != NULL) {
        redisFree(*c);
        *c = NULL;
    }
    return status;
}
